"""Key pairs made here are what ssh-keygen says they are, and what it can sign with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from liveclone.guest import sshkey

# RFC 8032, 7.1: secret and public key of tests 1 and 2
RFC8032 = [
    ("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
     "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"),
    ("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
     "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"),
]  # fmt: skip


@pytest.mark.parametrize(("secret", "public"), RFC8032)
def test_ed25519_vectors(secret: str, public: str) -> None:
    assert sshkey._ed25519_public(bytes.fromhex(secret)).hex() == public


@pytest.mark.parametrize("bits", [256, 384, 521])
def test_the_order_times_the_base_is_nothing(bits: int) -> None:
    """(order - 1) * base is the opposite of the base: wrong constants would not give that."""
    curve = sshkey._CURVES[bits]
    x, y = curve.multiply_base(curve.order - 1)
    assert (x, curve.prime - y) == curve.multiply_base(1)


KINDS = ["ed25519", "256", "384", "521"]


def make(kind: str) -> sshkey.KeyPair:
    if kind == "ed25519":
        return sshkey.make_ed25519(os.urandom, "root@clone")
    return sshkey.make_ecdsa(os.urandom, "root@clone", int(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_ssh_keygen_agrees(kind: str, tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is missing")
    pair = make(kind)
    path = tmp_path / "key"
    path.write_text(pair.private)
    path.chmod(0o600)
    path.with_suffix(".pub").write_text(pair.public)
    message = tmp_path / "message"
    message.write_text("hello")

    def keygen(*args: str | Path) -> str:
        with message.open() as text:
            return subprocess.run(
                ["ssh-keygen", *args], stdin=text, capture_output=True, text=True, check=True
            ).stdout.strip()

    assert keygen("-y", "-f", path) == pair.public.strip()
    assert keygen("-lf", f"{path}.pub").split()[1] == sshkey.fingerprint(pair.public.split()[1])
    keygen("-q", "-Y", "sign", "-n", "file", "-f", path, message)
    assert "Good" in keygen("-Y", "check-novalidate", "-n", "file", "-s", f"{message}.sig")


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_differ(kind: str) -> None:
    assert make(kind).private != make(kind).private


def test_a_smaller_draw_makes_a_valid_key() -> None:
    assert sshkey.make_ecdsa(bytes, "c").public  # all zeros: the smallest secret
    assert sshkey.make_ed25519(bytes, "c").public
