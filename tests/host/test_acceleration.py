"""The accelerator is chosen by evidence, and the reason says which."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveclone.errors import ConfigError
from liveclone.host import acceleration
from liveclone.model.machine import Acceleration

INTEL = "processor\t: 0\nflags\t\t: fpu vme sse2 vmx ept\nvmx flags\t: vnmi preemption_timer\n"
AMD = "processor\t: 0\nflags\t\t: fpu vme sse2 svm npt\n"
PARAVIRTUAL = "processor\t: 0\nflags\t\t: fpu vme vmmcall hypervisor\nvmx flags\t: vmx\nbugs\t\t: svm\n"


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    return tmp_path / "cpuinfo"


@pytest.fixture
def kvm() -> Path:
    """The host's own device: a file cannot answer KVM's ioctl."""
    try:
        acceleration.DEVICE.open("r+b", buffering=0).close()
    except OSError as error:
        pytest.skip(f"no KVM device here: {error}")
    return acceleration.DEVICE


@pytest.mark.parametrize(("text", "flag"), [(INTEL, "vmx"), (AMD, "svm"), (PARAVIRTUAL, ""), ("", "")])
def test_the_flag_is_a_whole_word_of_the_flags_line(cpuinfo: Path, text: str, flag: str) -> None:
    cpuinfo.write_text(text)
    assert acceleration.find_flag(cpuinfo) == flag


def test_no_flag_where_there_is_no_cpuinfo(cpuinfo: Path) -> None:
    assert acceleration.find_flag(cpuinfo) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [(INTEL, Acceleration.KVM), (AMD, Acceleration.KVM), (PARAVIRTUAL, Acceleration.TCG)],
)
def test_a_device_that_answers_is_chosen_only_with_the_flag(
    kvm: Path, cpuinfo: Path, text: str, expected: Acceleration
) -> None:
    cpuinfo.write_text(text)
    choice = acceleration.examine("", device=kvm, cpuinfo=cpuinfo, architecture="x86_64")
    assert choice.acceleration is expected
    assert ("vmx nor svm" in choice.reason) == (expected is Acceleration.TCG)


def test_a_missing_device_means_tcg_and_says_how_to_get_one(tmp_path: Path, cpuinfo: Path) -> None:
    cpuinfo.write_text(INTEL)
    choice = acceleration.examine("", device=tmp_path / "kvm", cpuinfo=cpuinfo, architecture="x86_64")
    assert choice.acceleration is Acceleration.TCG
    assert "there is no" in choice.reason
    assert "firmware" in choice.next_step


def test_a_device_that_does_not_answer_means_tcg(tmp_path: Path, cpuinfo: Path) -> None:
    cpuinfo.write_text(INTEL)
    device = tmp_path / "kvm"
    device.touch()
    choice = acceleration.examine("", device=device, cpuinfo=cpuinfo, architecture="x86_64")
    assert choice.acceleration is Acceleration.TCG
    assert "does not answer" in choice.reason


def test_another_architecture_means_tcg(cpuinfo: Path) -> None:
    cpuinfo.write_text(INTEL)
    choice = acceleration.examine("", cpuinfo=cpuinfo, architecture="aarch64")
    assert choice.acceleration is Acceleration.TCG
    assert "aarch64" in choice.reason


def test_the_wish_for_tcg_wins(cpuinfo: Path) -> None:
    cpuinfo.write_text(INTEL)
    assert acceleration.examine("tcg", cpuinfo=cpuinfo).acceleration is Acceleration.TCG


def test_the_wish_for_kvm_needs_no_flag(kvm: Path, cpuinfo: Path) -> None:
    cpuinfo.write_text(PARAVIRTUAL)
    choice = acceleration.examine("kvm", device=kvm, cpuinfo=cpuinfo, architecture="x86_64")
    assert choice.acceleration is Acceleration.KVM


def test_the_wish_for_kvm_is_refused_where_nothing_answers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        acceleration.examine("kvm", device=tmp_path / "kvm", architecture="x86_64")
    assert refused.value.code == "no-kvm"
    assert "there is no" in refused.value.seen


def test_a_wish_without_meaning_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        acceleration.examine("hvf")
    assert refused.value.code == "bad-acceleration"


def test_the_environment_is_asked_when_no_wish_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(acceleration.SETTING, "tcg")
    assert acceleration.choose() == (Acceleration.TCG, "LIVECLONE_ACCEL=tcg asks for it")
    monkeypatch.setenv(acceleration.SETTING, "both")
    with pytest.raises(ConfigError):
        acceleration.examine()
