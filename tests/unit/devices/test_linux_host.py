"""Facts of a machine, and what it lacks, over machines laid out in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from sevd.devices.linux import LinuxHost

FLAGS = "fpu sme sev sev_es sev_snp debug_swap"


def machine(root: Path, *, vendor: str = "AuthenticAMD", family: int = 25, model: int = 17, flags: str = FLAGS) -> Path:
    """A Genoa host with everything switched on."""
    files = {
        "proc/cpuinfo": f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: a part\nstepping\t: 1\nflags\t\t: {flags}\n\nprocessor\t: 1\nvendor_id\t: other\n",
        "sys/module/ccp/parameters/psp_cmd_timeout": "100\n",
        "sys/module/kvm_amd/parameters/sev": "Y\n",
        "sys/module/kvm_amd/parameters/sev_es": "Y\n",
        "sys/module/kvm_amd/parameters/sev_snp": "Y\n",
        "sys/fs/cgroup/misc.capacity": "sev 410\nsev_es 99\n",
        "sys/fs/cgroup/misc.current": "sev 2\nsev_es 7\n",
        "node/sev": "",
        "node/kvm": "",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def host(root: Path) -> LinuxHost:
    return LinuxHost(sev_path=str(root / "node/sev"), kvm_path=str(root / "node/kvm"), root=root, release="6.18.0-test")


def test_a_machine_with_everything(tmp_path: Path) -> None:
    it = host(machine(tmp_path))
    facts = it.facts()
    assert (facts.product, facts.cpu_family, facts.cpu_model, facts.cpu_stepping) == ("genoa", 25, 17, 1)
    assert facts.kernel == "6.18.0-test"
    assert facts.technologies == ("sev", "sev-es", "sev-snp")
    assert it.asids() == {"sev": (410, 2), "sev_es": (99, 7)}
    assert it.missing() == []


@pytest.mark.parametrize(
    ("lack", "words"),
    [
        ("vendor", "not AMD's (GenuineIntel)"),
        ("flags", "does not see SEV-ES, SEV-SNP"),
        ("bare machine", "a virtual machine itself, and its processor shows no SEV, SEV-ES, SEV-SNP"),
        ("ccp", "kernel module ccp is not loaded"),
        ("kvm_amd", "kernel module kvm_amd is not loaded"),
        ("sev_snp", "SEV-SNP switched off"),
        ("firmware", "found no usable SEV firmware"),
    ],
)
def test_why_there_is_no_sev(tmp_path: Path, lack: str, words: str) -> None:
    import shutil

    root = machine(
        tmp_path,
        vendor="GenuineIntel" if lack == "vendor" else "AuthenticAMD",
        flags={"flags": "fpu sme sev", "bare machine": "fpu hypervisor"}.get(lack, FLAGS),
    )
    (root / "node/sev").unlink()
    if lack in ("ccp", "kvm_amd"):
        shutil.rmtree(root / "sys/module" / lack)
    if lack == "sev_snp":
        (root / "sys/module/kvm_amd/parameters/sev_snp").write_text("N\n")
    missing = host(root).missing()
    assert missing[0] == f"There is no {root}/node/sev."
    assert len(missing) == 2
    assert words in missing[1]


def test_no_kvm_is_said_alone(tmp_path: Path) -> None:
    root = machine(tmp_path)
    (root / "node/kvm").unlink()
    assert host(root).missing() == [f"There is no {root}/node/kvm."]


def test_a_node_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    root = machine(tmp_path)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "open", refuse)
    missing = host(root).missing()
    assert any("may not be opened by uid" in sentence for sentence in missing)


def test_an_empty_machine_raises_nothing(tmp_path: Path) -> None:
    it = host(tmp_path)
    facts = it.facts()
    assert (facts.product, facts.cpu_family, facts.technologies) == ("", 0, ())
    assert it.asids() == {"sev": (0, 0), "sev_es": (0, 0)}
    assert len(it.missing()) == 3


@pytest.mark.parametrize("text", ["sev\nsev_es x\n", "\xff\xfe", "sev 99999999999999999999999\n", "sev -1\n"])
def test_garbage_in_the_cgroup_counts_nothing(tmp_path: Path, text: str) -> None:
    root = machine(tmp_path)
    (root / "sys/fs/cgroup/misc.capacity").write_text(text, encoding="utf-8")
    assert host(root).asids()["sev"][0] == 0
