"""What can be set from outside, read once. Defaults follow the XDG base directory specification.

LIVECLONE_HOME      durable state         $XDG_DATA_HOME/liveclone  (~/.local/share/liveclone)
LIVECLONE_HOT       memory images, tmpfs  /dev/shm/liveclone-UID
LIVECLONE_DRIVER    qemu | libvirt | fake qemu
LIVECLONE_LIBVIRT_URI  of its libvirt     libvirt's own default
LIVECLONE_NETWORK   bridge | user | none  bridge for root, else user; libvirt: what the domain has
LIVECLONE_SUBNET    CIDR of the gateway   10.213.0.1/16
LIVECLONE_RESERVE   memory to leave free  5% of the host's, at least 256M
LIVECLONE_ACCEL     kvm | tcg             see `liveclone doctor`
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..model.network import NetworkKind
from ..units import parse_size

DRIVERS = ("qemu", "libvirt", "fake")


@dataclass(frozen=True)
class Settings:
    """The settings of one command or service."""

    home: Path
    hot: Path
    driver: str = "qemu"
    libvirt_uri: str = ""
    network: NetworkKind = NetworkKind.USER
    subnet: str = "10.213.0.1/16"
    reserve_bytes: int | None = None


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings that the environment asks for.

    Raises:
        ConfigError: one of them has no meaning.
    """
    env = os.environ if environment is None else environment
    root = os.geteuid() == 0
    data = Path(env.get("XDG_DATA_HOME") or Path(env.get("HOME", "/root")) / ".local" / "share")
    reserve = env.get("LIVECLONE_RESERVE", "")
    driver = _one_of("LIVECLONE_DRIVER", env.get("LIVECLONE_DRIVER") or "qemu", DRIVERS)
    usual = "libvirt" if driver == "libvirt" else "bridge" if root else "user"
    return Settings(
        home=Path(env.get("LIVECLONE_HOME") or data / "liveclone").absolute(),
        hot=Path(env.get("LIVECLONE_HOT") or f"/dev/shm/liveclone-{os.geteuid()}").absolute(),
        driver=driver,
        libvirt_uri=env.get("LIVECLONE_LIBVIRT_URI", ""),
        network=NetworkKind(
            _one_of(
                "LIVECLONE_NETWORK",
                env.get("LIVECLONE_NETWORK") or usual,
                tuple(kind.value for kind in NetworkKind),
            )
        ),
        subnet=env.get("LIVECLONE_SUBNET") or "10.213.0.1/16",
        reserve_bytes=parse_size(reserve) if reserve else None,
    )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value in allowed:
        return value
    raise ConfigError(
        f"{name}={value!r} has no meaning",
        code="bad-setting",
        tried="reading the settings",
        on=name,
        seen=value,
        next_step=f"set it to {' or '.join(allowed)}, or unset it",
    )
