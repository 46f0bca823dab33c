"""Facts of a machine, and what it lacks, over machines laid out in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from sevd.devices.linux import LinuxHost
from sevd.devices.missing import Lacking, Missing, remedy_of

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
        ("flags", "does not show SEV-ES"),
        ("bare machine", "a virtual machine itself"),
        ("ccp", "kernel module ccp (the driver of the AMD secure processor) is not loaded"),
        ("kvm_amd", "kernel module kvm_amd (KVM on AMD processors) is not loaded"),
        ("sev_snp", "kvm_amd has SEV-SNP off (sev_snp=N)"),
        ("firmware", "no processor with usable SEV firmware"),
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
    if lack in ("sev_snp", "bare machine"):  # a kernel below a hypervisor turns it off
        (root / "sys/module/kvm_amd/parameters/sev_snp").write_text("N\n")
    missing = host(root).missing()
    assert missing[0].startswith(f"There is no {root}/node/sev")
    assert words in missing[-1]
    assert len(missing) <= 3
    assert all(isinstance(one, Missing) and one.remedy for one in missing)
    assert remedy_of(missing)


def test_what_is_missing_is_looked_for_again() -> None:
    """While something is missing, at most once in a while; never again once nothing is."""
    answers: list[list[str]] = [["no sev", "no kvm"], ["no kvm"], [], ["gone"]]
    now = [0.0]
    lacking = Lacking(lambda: answers.pop(0), seconds=2.0, clock=lambda: now[0])
    assert (len(lacking), list(lacking), lacking[0]) == (2, ["no sev", "no kvm"], "no sev")
    now[0] = 1.9
    assert list(lacking) == ["no sev", "no kvm"]
    now[0] = 2.0
    assert lacking[:] == ("no kvm",)
    now[0] = 10.0
    assert not lacking
    now[0] = 1000.0
    assert list(lacking) == []
    assert answers == [["gone"]]


def test_the_remedy_of_the_first_that_has_one() -> None:
    assert remedy_of(["plain", Missing("a", ""), Missing("b", "do b"), Missing("c", "do c")]) == "do b"
    assert remedy_of([]) == remedy_of(["plain"]) == ""


def test_no_kvm_is_said_alone(tmp_path: Path) -> None:
    root = machine(tmp_path)
    (root / "node/kvm").unlink()
    assert host(root).missing() == [f"There is no {root}/node/kvm: KVM is not loaded."]


def test_a_node_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    root = machine(tmp_path)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "open", refuse)
    missing = host(root).missing()
    assert missing[0] == f"{root}/node/sev cannot be opened for reading by uid {os.geteuid()}: Permission denied."


def test_an_empty_machine_raises_nothing(tmp_path: Path) -> None:
    it = host(tmp_path)
    facts = it.facts()
    assert (facts.product, facts.cpu_family, facts.technologies) == ("", 0, ())
    assert it.asids() == {"sev": (0, 0), "sev_es": (0, 0)}
    assert len(it.missing()) == 2


@pytest.mark.parametrize("text", ["sev\nsev_es x\n", "\xff\xfe", "sev 99999999999999999999999\n", "sev -1\n"])
def test_garbage_in_the_cgroup_counts_nothing(tmp_path: Path, text: str) -> None:
    root = machine(tmp_path)
    (root / "sys/fs/cgroup/misc.capacity").write_text(text, encoding="utf-8")
    assert host(root).asids()["sev"][0] == 0
