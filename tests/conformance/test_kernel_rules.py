"""The register of what Linux does with /dev/sev and KVM's SEV commands: every rule has a test by name, on every kernel.

A rule is looked up here; what it demands is in the test. The register notices a test that was renamed, or that no
longer runs in each of the kernel generations A, B and C.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ERAS = ("A", "B", "C")

FILES = {
    "sev": "simulator_kvm/test_dev_sev.py",
    "device": "simulator_legacy/test_legacy_device.py",
    "implicit": "simulator_legacy/test_implicit_init.py",
    "eras": "simulator_legacy/test_kernel_eras.py",
    "kvm": "simulator_kvm/test_kvm_sev.py",
    "kvm legacy": "simulator_kvm/legacy/test_kvm_legacy.py",
    "kvm snp": "simulator_kvm/test_kvm_launch.py",
    "kvm snp update": "simulator_kvm/test_kvm_launch_update.py",
    "kvm migration": "simulator_kvm/test_kvm_migration.py",
    "layouts": "simulator_kvm/test_layouts.py",
    "guest": "simulator_guest/test_sev_guest_device.py",
    "channel": "simulator_guest/test_guest_channel.py",
    "files": "../integration/test_device_files_ioctl.py",
}

DEVICE: dict[str, tuple[str, ...]] = {
    "any open mode": ("sev test_reading_commands_work_in_any_mode",),
    "no device: ENODEV before all else": ("sev test_an_absent_processor_is_enodev_before_all_else",),
    "another ioctl: EINVAL": ("sev test_other_ioctls_are_einval",),
    "an unreadable envelope: EFAULT": ("sev test_an_unreadable_envelope_is_efault",),
    "an unknown command: EINVAL, nothing copied back": (
        "sev test_unknown_commands_are_einval_and_not_copied_back",
    ),
    "the envelope is copied back also after an error": ("device test_access_comes_first",),
    "an envelope that cannot be copied back: EFAULT": ("sev test_an_envelope_that_goes_away_turns_success_into_efault",),
    "error is left alone where the firmware was not reached": (
        "device test_unreadable_structures", "sev test_changing_commands_need_write_before_anything_is_read",
    ),
    "a status: EIO and the status": (
        "sev test_a_status_of_the_firmware_is_eio", "device test_any_status_comes_through",
    ),
    "no completion: ETIMEDOUT and 0, then EBUSY": (
        "sev test_a_timeout_kills_the_processor", "device test_a_processor_that_hangs",
    ),
    "write access is looked at first": ("device test_access_comes_first",),
    "commands without data ignore it": ("device test_commands_without_data_ignore_it",),
    "FACTORY_RESET: STATUS, SHUTDOWN, RESET; stays down": ("device test_reset",),
    "FACTORY_RESET in WORKING: EBUSY": ("device test_reset_while_guests_run",),
    "FACTORY_RESET: any failure": ("device test_a_reset_that_fails",),
    "the cached state follows INIT and SHUTDOWN alone": (
        "implicit test_after_a_reset_a_command_brings_legacy_sev_up_and_everything_down",
    ),
    "the shutdown takes SNP with it": (
        "implicit test_after_a_reset_a_command_brings_legacy_sev_up_and_everything_down",
        "implicit test_a_running_snp_guest_keeps_snp_up",
    ),
    "an implicit INIT that fails": (
        "implicit test_an_implicit_init_that_fails", "implicit test_an_implicit_init_without_a_processor",
    ),
    "INIT again after SECURE_DATA_INVALID": ("implicit test_a_store_that_is_not_this_chips_is_tried_twice",),
    "PLATFORM_STATUS is the firmware's; EFAULT after it": (
        "sev test_platform_status", "sev test_an_unwritable_answer_is_efault_after_the_firmware",
    ),
    "PEK_CSR: probe, lengths, EFAULT above 16 KiB": ("device test_the_request_for_a_signature",),
    "PEK_CSR: the structure comes before the data": ("device test_a_request_into_nowhere",),
    "PDH_CERT_EXPORT: probe by any zero, lengths, EFAULT above 16 KiB": ("device test_exports",),
    "PDH_CERT_EXPORT: data into nowhere": ("device test_an_export_into_nowhere",),
    "PDH_CERT_EXPORT needs write only while not INIT": ("implicit test_an_export_needs_write_only_to_initialise",),
    "PDH_CERT_EXPORT: initialises before or after it reads": (
        "eras test_an_export_reads_before_or_after_it_initialises",
    ),
    "PEK_CERT_IMPORT: EINVAL for blobs, PEK before OCA": (
        "device test_imports_that_are_none", "device test_the_pek_is_looked_at_before_the_oca",
    ),
    "PEK_CERT_IMPORT: owner and its end": ("device test_an_owner",),
    "GET_ID: 128 bytes": ("device test_get_id_has_room_for_two_sockets",),
    "GET_ID and GET_ID2 on old firmware: 524": ("sev test_get_id_on_old_firmware_is_an_errno_without_a_name",),
    "GET_ID2: probe, length back always, no cap but memory": (
        "sev test_get_id2_writes_the_length_back_always", "sev test_get_id2_faults",
    ),
    "SNP commands without data: EINVAL before access": ("sev test_no_data_is_einval_even_without_write",),
    "SNP_COMMIT checks no access": ("sev test_commit_needs_no_write",),
    "SNP_SET_CONFIG is passed on as it is": ("sev test_set_config",),
    "SNP_VLEK_LOAD: length, version, address": ("sev test_vlek_load_refused",),
    "SNP commands while SNP is down": (
        "eras test_snp_commands_without_snp", "eras test_the_order_of_checks_without_snp",
    ),
}  # fmt: skip

GUESTS: dict[str, tuple[str, ...]] = {
    "another file for sev_fd: EBADF": (
        "kvm legacy test_a_start_takes_the_callers_descriptor", "kvm snp test_bad_descriptors_hide_behind_enotty",
    ),
    "another memory: EIO": ("kvm test_another_process_gets_eio",),
    "no argument is the probe": ("kvm test_no_argument_is_the_probe",),
    "an unreadable envelope: EFAULT": ("kvm test_an_unreadable_envelope_is_efault",),
    "an unknown id: EINVAL": ("kvm test_unknown_and_unimplemented_ids_are_einval",),
    "SNP guests have no ids below 100": ("kvm test_ids_below_100_are_eperm_on_snp",),
    "probes fail with the length; MEASURE and the report update it then only": ("kvm legacy test_lengths",),
    "SEND_START updates its length always": (
        "kvm migration test_the_probe_of_send_start", "kvm migration test_send_start",
    ),
    "SEND_UPDATE_DATA: both lengths in a probe": ("kvm migration test_the_probe_of_send_update",),
    "blobs above 16 KiB: EINVAL": (
        "kvm legacy test_blobs_of_the_start", "kvm legacy test_secrets_that_do_not_reach_the_firmware",
    ),
    "SNP_LAUNCH_START hides errors of the context behind ENOTTY": (
        "kvm snp test_context_errors_hide_behind_enotty_with_their_status",
    ),
    "SNP_LAUNCH_UPDATE hides all behind EIO": ("kvm snp update test_whatever_stops_the_first_page_is_eio",),
    "SNP_LAUNCH_UPDATE: 0 for a part": ("kvm snp update test_what_stops_a_later_page_is_success_with_less_done",),
    "SNP_LAUNCH_UPDATE without a context: EINVAL": ("kvm snp update test_update_before_start_is_einval",),
    "SNP_LAUNCH_FINISH of another guest: ENOTTY": (
        "kvm test_sev_guests_have_no_snp_commands", "kvm snp test_finish_out_of_order",
    ),
    "the descriptor of the start is remembered by its number": (
        "kvm legacy test_the_descriptor_of_the_start_is_remembered_by_its_number",
        "kvm snp test_vmsas_go_through_the_callers_descriptor_and_the_end_through_the_remembered",
        "kvm snp test_reopening_on_the_remembered_number_heals",
    ),
    "before any start it is 0": (
        "kvm legacy test_before_any_start_descriptor_0_is_asked_of_handle_0",
        "kvm legacy test_before_any_start_descriptor_0_may_be_another_file",
    ),
    "VMSAs are consumed before the ID block is read": (
        "kvm snp test_a_bad_id_block_pointer_burns_the_vm", "kvm snp test_a_refused_id_block_burns_the_vm",
    ),
    "an ASID is taken at INIT, without the device": ("kvm test_init2_takes_no_descriptor",),
    "an ASID is free when the last descriptor is closed": (
        "kvm test_the_last_descriptor_frees_the_asid", "kvm test_closing_the_sev_device_frees_nothing",
    ),
    "ASIDs are recycled late": ("kvm test_a_full_range_is_ebusy_and_recycled_with_one_flush",),
}  # fmt: skip

ANY_KERNEL: dict[str, tuple[str, ...]] = {
    "structures are packed as the kernel's, host_data at 19": ("layouts test_sizes_and_offsets",),
    "a 32-bit caller: ENOTTY; a path descriptor: EBADF": (
        "files test_32_bit_callers_get_enotty", "files test_a_path_descriptor_takes_no_ioctl",
    ),
    "sev-guest: another ioctl is ENOTTY": ("guest test_an_unknown_ioctl_is_ENOTTY_and_writes_back",),
    "sev-guest: nothing is written back on success": ("guest test_a_success_leaves_the_callers_structure_alone",),
    "sev-guest: almost any failure costs the key": (
        "channel test_a_refusal_of_the_firmware_costs_the_key", "channel test_another_error_of_the_host_costs_the_key",
        "channel test_a_host_that_stays_busy_costs_the_key",
        "guest test_a_response_that_cannot_be_written_is_EFAULT_and_the_key_stays",
    ),
}  # fmt: skip
"""Rules of guests' kernels and of the kernel's frame, which have nothing to do with the generation."""


def names(rules: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, str, str]]:
    """(rule, file, test)."""
    for rule, tests in rules.items():
        for each in tests:
            where, _, test = each.rpartition(" ")
            yield rule, FILES[where], test


@pytest.fixture(scope="module")
def collected() -> dict[tuple[str, str], list[str]]:
    """Parameters of the tests of those files, by (file, test)."""
    files = [str((ROOT / "tests" / "unit" / name).resolve()) for name in FILES.values()]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    done = subprocess.run([*command, *files], capture_output=True, text=True, cwd=ROOT, check=True)
    found: dict[tuple[str, str], list[str]] = {}
    for line in done.stdout.splitlines():
        path, separator, test = line.partition("::")
        if separator:
            name, _, parameters = test.partition("[")
            found.setdefault((Path(path).name, name), []).append(parameters.rstrip("]"))
    return found


@pytest.mark.parametrize(("rules", "each"), [(DEVICE, True), (GUESTS, True), (ANY_KERNEL, False)])
def test_every_rule_has_its_tests(
    collected: dict[tuple[str, str], list[str]], rules: dict[str, tuple[str, ...]], each: bool
) -> None:
    missing = []
    for rule, file, test in names(rules):
        parameters = collected.get((Path(file).name, test), [])
        kernels = {part for one in parameters for part in one.split("-")}
        if not parameters or (each and not kernels.issuperset(ERAS)):
            missing.append(f"{rule}: {file}::{test} {sorted(kernels)[:9]}")
    assert missing == []
