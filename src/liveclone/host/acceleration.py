"""Which accelerator this host's machines run with, and why.

    LIVECLONE_ACCEL=kvm|tcg  ->  as told
    not x86-64               ->  tcg   the guests are x86-64
    /dev/kvm does not open   ->  tcg
    neither vmx nor svm      ->  tcg
    otherwise                ->  kvm

A device that opens is not enough. On hosts that are themselves paravirtual guests, /dev/kvm opens and gives
the right API version, a guest of three instructions runs to its end, and an ordinary Linux kernel hangs
(FACTS: a boot sector that writes to isa-debug-exit ends after 4.5 s under that KVM, 0.2 s under TCG). So
no short probe can tell; the processor's own flags, which such hosts do not show, can.
"""

from __future__ import annotations

import fcntl
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..model.machine import Acceleration

SETTING = "LIVECLONE_ACCEL"
DEVICE = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")

# linux/kvm.h: _IO(0xAE, 0x00); the version has been 12 since Linux 2.6.22 and will stay so (KVM API document, 4.1).
_KVM_GET_API_VERSION = 0xAE00
_KVM_API_VERSION = 12


@dataclass(frozen=True)
class Choice:
    """What machines run with. `next_step` says how to get KVM, where there is a way."""

    acceleration: Acceleration
    reason: str
    next_step: str = ""


def choose() -> tuple[Acceleration, str]:
    """Return the accelerator that machines here run with, and why; see `examine`."""
    choice = examine()
    return choice.acceleration, choice.reason


def examine(
    wish: str | None = None,
    *,
    device: Path = DEVICE,
    cpuinfo: Path = CPUINFO,
    architecture: str | None = None,
) -> Choice:
    """Return the accelerator to use, with advice. Takes well under a millisecond, so nothing is cached.

    Args:
        wish: "kvm", "tcg" or empty; None reads the environment's LIVECLONE_ACCEL.
        device, cpuinfo, architecture: where to look; the host's own by default.

    Raises:
        ConfigError: the wish is none of these, or it is "kvm" and KVM does not even answer.
    """
    wish = os.environ.get(SETTING, "") if wish is None else wish
    architecture = platform.machine() if architecture is None else architecture
    if wish not in ("", "kvm", "tcg"):
        raise ConfigError(
            f"{SETTING}={wish!r} has no meaning",
            code="bad-acceleration",
            tried="choosing an accelerator",
            seen=wish,
            next_step=f"set {SETTING} to kvm or tcg, or unset it",
        )
    if wish == "tcg":
        return Choice(Acceleration.TCG, f"{SETTING}=tcg asks for it")

    refusal = _find_refusal(device)
    if architecture not in ("x86_64", "AMD64"):
        refusal = Choice(Acceleration.TCG, f"the guests are x86-64 and this host is {architecture}")
    if wish == "kvm":
        if refusal is not None:
            raise ConfigError(
                f"{SETTING}=kvm, and KVM cannot be used here",
                code="no-kvm",
                tried="choosing an accelerator",
                on=str(device),
                seen=refusal.reason,
                next_step=refusal.next_step or f"unset {SETTING}",
            )
        return Choice(Acceleration.KVM, f"{SETTING}=kvm asks for it, and {device} answers")
    if refusal is not None:
        return refusal
    flag = find_flag(cpuinfo)
    if not flag:
        return Choice(
            Acceleration.TCG,
            f"{device} answers, but the processor shows neither vmx nor svm: guests may hang under such a KVM",
            f"if Linux guests do run under KVM here, set {SETTING}=kvm",
        )
    return Choice(Acceleration.KVM, f"{device} answers and the processor has {flag}")


def find_flag(cpuinfo: Path = CPUINFO) -> str:
    """Return "vmx" (Intel), "svm" (AMD) or "" from the first processor's flags, as proc(5) lists them."""
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":  # and not "vmx flags", which Intel processors show beside it
            return next((flag for flag in value.split() if flag in ("vmx", "svm")), "")
    return ""


def _find_refusal(device: Path) -> Choice | None:
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return Choice(
            Acceleration.TCG,
            f"there is no {device}",
            "switch on virtualisation in the firmware, or nested virtualisation where this host is a guest",
        )
    except PermissionError:
        return Choice(
            Acceleration.TCG,
            f"{device} is not open to this user",
            "add the user to the group kvm (adduser USER kvm) and log in again",
        )
    except OSError as error:
        return Choice(Acceleration.TCG, f"{device} does not open: {error.strerror}")
    try:
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION)
    except OSError as error:
        return Choice(Acceleration.TCG, f"{device} opens and does not answer: {error.strerror}")
    finally:
        os.close(fd)
    if version != _KVM_API_VERSION:
        return Choice(Acceleration.TCG, f"{device} speaks version {version} of the KVM interface")
    return None
