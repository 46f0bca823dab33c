"""The generation of the kernel's interface, told by its answers."""

from __future__ import annotations

import errno

import pytest

from sev.abi import kvm
from sev.abi.sev_device import SnpStatus
from sev.errors import DeviceMissing
from sev.host.era import interface
from sev.host.facts import kernel_facts
from sev.host.machine import Machine
from tests.support.machines import FakeReader, genoa

UNINIT = SnpStatus(1, 55, 0, 0, 40, 0, 0, 0, 0)


def _without(reader: FakeReader, *attributes: int) -> FakeReader:
    return reader.but(attributes=dict.fromkeys(attributes))


@pytest.mark.parametrize(
    ("reader", "since", "era"),
    [
        (genoa(), "7.1", "C"),
        (_without(genoa(), 2), "6.19", ""),
        (_without(genoa(), 1, 2), "6.18", ""),
        (_without(genoa(), 1, 2).but(extensions={kvm.CAP_GUEST_MEMFD_FLAGS: None}), "6.11", ""),
        (_without(genoa(), 2).but(snp=UNINIT, refusal=errno.EPERM), "6.19", "B or C"),
        (_without(genoa(), 1, 2).but(snp=DeviceMissing("EINVAL"), refusal=errno.EINVAL), "6.18", "A"),
        (_without(genoa(), 1, 2).but(snp=UNINIT, refusal=errno.EFAULT), "6.18", ""),
        (
            _without(genoa(), 0, 1, 2).but(extensions={kvm.CAP_VM_TYPES: 0b11, kvm.CAP_GUEST_MEMFD_FLAGS: None}),
            "6.8",
            "",
        ),
        (FakeReader(devices={"/dev/kvm": "rw"}), "", ""),
    ],
)
def test_interface(reader: FakeReader, since: str, era: str) -> None:
    seen = interface(Machine(reader))
    assert (seen.since, seen.era) == (since, era)
    assert bool(seen.offers) is bool(since)


def test_facts() -> None:
    facts = kernel_facts(genoa())
    assert facts.vm_types == ("default", "sev", "sev-es", "sev-snp")
    assert dict(facts.parameters)["kvm_amd.sev_snp"] == "Y"
    assert dict(facts.parameters)["ccp.psp_init_on_probe"] == "Y"
    assert (facts.interface, facts.era) == ("7.1", "C")


def test_facts_do_not_ask_the_firmware() -> None:
    def never() -> int:
        raise AssertionError("the firmware was asked")

    reader = genoa().but(attributes={2: None})
    reader.snp_status = never  # type: ignore[method-assign,assignment]
    reader.config_refusal = never  # type: ignore[method-assign]
    assert kernel_facts(reader).era == ""


def test_facts_without_kvm() -> None:
    facts = kernel_facts(genoa().but(devices={"/dev/kvm": errno.EACCES}))
    assert (facts.vm_types, facts.interface) == ((), "")
    assert facts.parameters
