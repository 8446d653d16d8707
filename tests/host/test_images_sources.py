"""Where a host gets Debian from, as installers and cloud images of Debian 12 and 13 write it down."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveclone.errors import Unsupported
from liveclone.host import apt_sources
from liveclone.images import rootfs
from tests.conftest import Needs

ONE_LINE = """\
# deb cdrom:[Debian GNU/Linux 12.5.0 _Bookworm_]/ bookworm main
deb http://mirror.example/debian/ bookworm main non-free-firmware   # the archive
deb-src http://mirror.example/debian/ bookworm main

deb [arch=amd64 signed-by=/usr/share/keyrings/other.gpg] https://other.example/apt bookworm-other main
deb http://security.example/debian-security bookworm-security main non-free-firmware
deb http://mirror.example/debian/ bookworm-updates main
"""

DEB822 = """\
# Written by the installer
Types: deb deb-src
URIs: https://mirror.example/debian
Suites: trixie trixie-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp

Types: deb
URIs: https://mirror.example/off
Suites: trixie
Components: main
Enabled: no

Types: deb
# a comment inside
URIs: https://security.example/debian-security
Suites: trixie-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp
"""


def make_host(root: Path, codename: str, files: dict[str, str], release_id: str = "debian") -> Path:
    (root / "etc/apt/sources.list.d").mkdir(parents=True)
    (root / "etc/os-release").write_text(
        f'PRETTY_NAME="Some {release_id}"\nID={release_id}\nVERSION_CODENAME={codename}\n'
    )
    for name, text in files.items():
        (root / "etc/apt" / name).write_text(text)
    return root


def test_the_one_line_format(tmp_path: Path) -> None:
    mirror = apt_sources.find_mirror(make_host(tmp_path, "bookworm", {"sources.list": ONE_LINE}))
    assert mirror.archive.uri == "http://mirror.example/debian/"
    assert mirror.archive.suites == ("bookworm",)
    assert mirror.security is not None and mirror.security.uri == "http://security.example/debian-security"
    assert mirror.archive.signed_by == ""
    assert not mirror.needs_certificates


def test_deb822(tmp_path: Path) -> None:
    host = make_host(
        tmp_path, "trixie", {"sources.list.d/debian.sources": DEB822, "sources.list": "# see there\n"}
    )
    mirror = apt_sources.find_mirror(host)
    assert mirror.archive.uri == "https://mirror.example/debian"
    assert mirror.archive.signed_by == "/usr/share/keyrings/debian-archive-keyring.pgp"
    assert mirror.security is not None and mirror.security.uri == "https://security.example/debian-security"
    assert mirror.needs_certificates
    assert mirror.render("forky").splitlines() == [
        "Types: deb",
        "URIs: https://mirror.example/debian",
        "Suites: forky",
        "Components: main",
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp",
        "",
        "Types: deb",
        "URIs: https://security.example/debian-security",
        "Suites: forky-security",
        "Components: main",
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp",
    ]
    assert "security" not in mirror.render("sid")


def test_a_key_may_stand_in_the_file_itself(tmp_path: Path) -> None:
    text = (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\nSigned-By:\n"
        " -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBGP\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )
    host = make_host(tmp_path, "trixie", {"sources.list.d/a.sources": text})
    mirror = apt_sources.find_mirror(host)
    assert mirror.archive.signed_by.split("\n")[1:4] == [
        "-----BEGIN PGP PUBLIC KEY BLOCK-----",
        "",
        "mQINBGP",
    ]
    again = apt_sources.parse_stanzas(mirror.render("trixie"))
    assert again[0].signed_by.strip() == mirror.archive.signed_by.strip()


def test_a_cloud_image_lists_its_mirrors_in_a_file(tmp_path: Path) -> None:
    text = (
        "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm\nComponents: main\n"
    )
    host = make_host(tmp_path, "bookworm", {"sources.list.d/debian.sources": text})
    (host / "etc/apt/mirrors").mkdir()
    (host / "etc/apt/mirrors/debian.list").write_text("# mirrors\nhttps://cdn.example/debian\tpriority:1\n")
    assert apt_sources.find_mirror(host).archive.uri == "https://cdn.example/debian"


def test_the_keyring_of_debian_is_named_where_the_entry_names_none(tmp_path: Path) -> None:
    host = make_host(tmp_path, "bookworm", {"sources.list": ONE_LINE})
    keyring = host / "usr/share/keyrings/debian-archive-keyring.gpg"
    keyring.parent.mkdir(parents=True)
    keyring.touch()
    assert apt_sources.find_mirror(host).archive.signed_by == "/usr/share/keyrings/debian-archive-keyring.gpg"
    named = apt_sources.use_mirror("http://my.example/debian", host)
    assert named.archive.signed_by and named.security is None


@pytest.mark.parametrize(
    ("codename", "release_id", "sources"),
    [
        ("noble", "ubuntu", ONE_LINE),
        ("trixie", "debian", ""),
        ("trixie", "debian", "deb cdrom:[Debian]/ trixie main\n"),
        ("trixie", "debian", "deb http://mirror.example/debian trixie contrib\n"),
        ("trixie", "debian", "deb http://mirror.example/debian trixie-updates main\n"),
    ],
)
def test_without_a_mirror_the_remedy_is_named(
    tmp_path: Path, codename: str, release_id: str, sources: str
) -> None:
    host = make_host(tmp_path, codename, {"sources.list": sources}, release_id)
    with pytest.raises(Unsupported) as caught:
        apt_sources.find_mirror(host)
    assert caught.value.code == "no-mirror"
    assert "--mirror" in caught.value.next_step


def test_an_empty_host_is_no_debian(tmp_path: Path) -> None:
    with pytest.raises(Unsupported):
        apt_sources.find_mirror(tmp_path)


def test_the_proxies_of_apt_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: Needs) -> None:
    needs("apt-config")
    (tmp_path / "apt.conf").write_text(
        'Acquire::http::Proxy "http://proxy.example:3142/"; Acquire::https::Proxy "DIRECT";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.delenv("http_proxy", raising=False)
    assert asyncio.run(rootfs._find_proxies()) == {"http_proxy": "http://proxy.example:3142/"}
    monkeypatch.setenv("http_proxy", "http://mine.example")
    assert asyncio.run(rootfs._find_proxies()) == {}


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    apt_sources.parse_lines(text)
    apt_sources.parse_stanzas(text)
