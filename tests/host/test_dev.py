"""./dev: what can be shown of it without installing anything."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

DEV = Path(__file__).resolve().parents[2] / "dev"


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(DEV), *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def run_function(
    name: str, *arguments: str, apt_folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of its functions alone."""
    return run_script(f'apt_folder=$1; shift\n{name} "$@"', str(apt_folder), *arguments, functions=(name,))


def run_script(
    script: str, *arguments: str, functions: tuple[str, ...], path: str = os.defpath
) -> subprocess.CompletedProcess[str]:
    """Run a script that has some of its functions."""
    bodies = []
    for name in functions:
        match = re.search(rf"^{name}\(\) \{{\n.*?^\}}$", DEV.read_text(), re.MULTILINE | re.DOTALL)
        assert match is not None
        bodies.append(match[0])
    return subprocess.run(
        ["sh", "-c", "\n".join(["set -eu", *bodies, script]), "sh", *arguments],
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)])
def test_help_names_every_command(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments, cwd=tmp_path)
    assert outcome.returncode == 0
    assert all(
        f"\n  {word} " in outcome.stdout for word in ("demo", "test", "check", "bench", "doctor", "run")
    )
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_does_not_exist_is_an_error_that_says_so(tmp_path: Path) -> None:
    outcome = run("tset", cwd=tmp_path)
    assert outcome.returncode == 1
    assert outcome.stdout == ""
    assert "no command tset" in outcome.stderr


@pytest.mark.parametrize(
    ("version", "new_enough"),
    [
        ("8.2", True),
        ("8.2.0", True),
        ("10.0.2+ds-2", True),
        ("9.0", True),
        ("8.1.9", False),
        ("7.2.17", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, new_enough: bool) -> None:
    assert (run_function("at_least", version, "8.2").returncode == 0) == new_enough


STANZA = """\
# The system's own
Types: deb deb-src
# a comment inside
URIs: mirror+file:///etc/apt/mirrors/debian.list http://second.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----
Trusted: yes
"""
NOT_THESE = """\
Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://contrib.example/debian
Suites: bookworm
Components: contrib
"""
LINES = """\
# deb http://off.example/debian bookworm main
deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb-src http://sources.example/debian bookworm main
deb http://security.example/debian-security bookworm-security main
deb [ signed-by=/usr/share/keyrings/own.gpg arch=amd64,arm64 ] http://line.example/debian bookworm contrib main # ours
"""


def test_backports_are_found_where_the_system_itself_is(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "a.sources").write_text(NOT_THESE)
    (tmp_path / "sources.list.d" / "b.sources").write_text(STANZA)
    outcome = run_function("plan_backports", "bookworm", "bookworm-backports", apt_folder=tmp_path)
    assert outcome.stdout == (
        "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm-backports\nComponents: main\n"
        + STANZA[STANZA.index("Signed-By") :]
    )


def test_backports_are_found_in_one_line_sources_with_their_options(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(LINES)
    outcome = run_function("plan_backports", "bookworm", "bookworm-backports", apt_folder=tmp_path)
    assert outcome.stdout.lower() == (
        "types: deb\nuris: http://line.example/debian\nsuites: bookworm-backports\ncomponents: main\n"
        "signed-by: /usr/share/keyrings/own.gpg\narchitectures: amd64 arm64\n"
    )


def test_no_backports_are_made_up(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "a.sources").write_text(NOT_THESE)
    outcome = run_function("plan_backports", "bookworm", "bookworm-backports", apt_folder=tmp_path)
    assert (outcome.returncode, outcome.stdout) == (0, "")


@pytest.mark.parametrize(
    ("daemon", "module", "missing"),
    [
        ("libvirtd (libvirt) 11.3.0", True, ""),
        ("libvirtd (libvirt) 9.0.0", True, " libvirt-daemon"),
        ("", True, " libvirt-daemon"),
        (None, True, " libvirt-daemon"),
        ("libvirtd (libvirt) 10.0.0", False, " python3-libvirt"),
    ],
)
def test_what_is_missing_or_too_old_is_found(
    tmp_path: Path, daemon: str | None, module: bool, missing: str
) -> None:
    if daemon is not None:
        (tmp_path / "libvirtd").write_text(f"#!/bin/sh\necho '{daemon}'\n")
        (tmp_path / "libvirtd").chmod(0o755)
    if module:
        (tmp_path / "libvirt.py").touch()
    table = f"libvirt-daemon libvirtd x y\npython3-libvirt {tmp_path}/libvirt.py x y\n"
    script = f"oldest_libvirt=10.0\nsystem_packages='{table}'\nfind_missing\nprintf %s \"$missing\""
    path = f"{tmp_path}:/usr/bin:/bin"  # where libvirtd itself is not
    outcome = run_script(script, functions=("at_least", "find_missing"), path=path)
    assert (outcome.stdout, outcome.stderr) == (missing, "")


def test_what_only_a_comparison_needs_is_gone_on_without(tmp_path: Path) -> None:
    """A release may not have it; and what is there is not installed."""
    for name in ("there", "apt-get"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    script = (
        'step() { echo "$1"; shift; "$@"; }\n'
        "install_packages() { return 1; }\n"
        "become_root() { :; }\nrefresh_lists() { :; }\n"
        'log=setup.log\nsay() { echo "$*"; }\n'
        "set_up_optional 'there there x y\nnot-there not-there x y'\necho goes on"
    )
    outcome = run_script(
        script, functions=("at_least", "find_missing", "set_up_optional"), path=f"{tmp_path}:/usr/bin:/bin"
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert re.sub(r":.*", "", outcome.stdout) == "package not-there\n  going on without not-there\ngoes on\n"


def test_the_systems_libvirt_module_is_linked_and_follows_it(tmp_path: Path) -> None:
    system, site = tmp_path / "system", tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    system.mkdir()
    site.mkdir(parents=True)
    (system / "libvirt.py").write_text("new")
    (system / "other.py").touch()
    (site / "libvirt.py").symlink_to(tmp_path / "gone")
    script = f"python=/usr/bin/python3 venv={tmp_path}/venv modules={system}\nlink_libvirt\nlink_libvirt"
    outcome = run_script(script, functions=("link_libvirt",))
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert [path.name for path in site.iterdir()] == ["libvirt.py"]
    assert (site / "libvirt.py").read_text() == "new"
