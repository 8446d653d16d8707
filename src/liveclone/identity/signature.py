"""The host's key, and what is signed with it.

    HOME/host.key     Ed25519, PKCS #8 in PEM, mode 0600; made when it is first needed, never replaced

Signed are the bytes of a JSON value in its canonical form (RFC 8785): keys sorted, no blanks, UTF-8, numbers as short as
can be. So the file may be indented, and whoever has a JSON library and an Ed25519 (openssl) can check it.

`cryptography` is imported where it is used: that takes 16 ms, which a clone spends beside the wait for its guest.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Corrupt, NotFound, Refused
from ..host import files, locks
from ..model.proof import ALGORITHM, Signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class HostKey:
    """The key of one host.

    Args:
        path: its file.
        lock: a lock file of its own, so that two commands do not make two.
    """

    def __init__(self, path: Path, lock: Path) -> None:
        self._path = path
        self._lock = lock
        self._loading = threading.Lock()
        self._private: Ed25519PrivateKey | None = None

    def load(self) -> None:
        """Read the key, or make it: what takes time of the first signature. May be called in a thread.

        Raises:
            Corrupt: the file holds no such key (code "bad-host-key"); it is left as it is.
        """
        self._load()

    def sign(self, value: object) -> Signature:
        """Return the signature of a JSON value."""
        private = self._load()
        return Signature(
            algorithm=ALGORITHM,
            key=_text(private.public_key().public_bytes_raw()),
            value=_text(private.sign(render_canonical(value))),
        )

    def public(self) -> bytes:
        """Return the public half, in PEM."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = self._load().public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def public_raw(self) -> bytes:
        """Return the 32 bytes of the public half."""
        return self._load().public_key().public_bytes_raw()

    def _load(self) -> Ed25519PrivateKey:
        with self._loading:
            if self._private is None:
                if not self._path.exists():
                    self._make()
                self._private = self._read()
            return self._private

    def _make(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        with locks.hold(self._lock, "making the host's key", 10.0):
            if not self._path.exists():
                new = Ed25519PrivateKey.generate()
                data = new.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
                files.write_atomic(self._path, data, mode=0o600)

    def _read(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            found = load_pem_private_key(self._path.read_bytes(), None)
        except (ValueError, TypeError, OSError) as error:
            raise self._bad(str(error)) from error
        if not isinstance(found, Ed25519PrivateKey):
            raise self._bad(f"a key of another kind: {type(found).__name__}")
        return found

    def _bad(self, seen: str) -> Corrupt:
        return Corrupt(
            "the host's key cannot be used",
            code="bad-host-key",
            tried="reading the key that evidence is signed with",
            on=str(self._path),
            seen=seen,
            next_step="restore it, or move it away: a new one is made, and older evidence needs the old public key",
        )


def load_public(path: Path) -> bytes:
    """Return the 32 bytes of a public key from a file in PEM, as `liveclone verify --print-key` prints it.

    Raises:
        NotFound: there is no such file. Refused: it holds no such key (code "bad-key-file").
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        found = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise NotFound(
            f"the key {path} cannot be read",
            code="no-key-file",
            tried="reading a public key",
            on=str(path),
            seen=error.strerror or str(error),
            next_step="on the host that made the evidence: liveclone verify --print-key",
        ) from error
    except ValueError as error:
        raise _no_public_key(path, str(error)) from error
    if not isinstance(found, Ed25519PublicKey):
        raise _no_public_key(path, type(found).__name__)
    return found.public_bytes_raw()


def fits(value: object, signature: Signature, public: bytes) -> bool:
    """Tell whether a JSON value was signed with the key that has these 32 bytes, whatever key the signature names."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(
            base64.b64decode(signature.value, validate=True), render_canonical(value)
        )
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return signature.algorithm == ALGORITHM


def render_canonical(value: object) -> bytes:
    """Return a JSON value in its canonical form.

    RFC 8785 for the values of evidence: numbers between 0.001 and 2^53, and keys without characters beyond 16 bits.
    """
    text = json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def _plain(value: Any) -> Any:
    """Return the value with whole numbers as such: 12.0 and 12 are one number in JSON."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _no_public_key(path: Path, seen: str) -> Refused:
    return Refused(
        f"{path} holds no Ed25519 public key",
        code="bad-key-file",
        tried="reading a public key",
        on=str(path),
        seen=seen,
        next_step="give the PEM file that liveclone verify --print-key prints on the host that made the evidence",
    )
