"""What an item, a hook or a call needs to know: where the root is, what the host asked for, until when."""

from __future__ import annotations

import os

from . import files
from .kernel import Kernel
from .request import Request
from .sha import hmac_sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .workers import Task


class Context:
    """One run of the items, for one request."""

    def __init__(self, root: str, kernel: Kernel, request: Request, key: bytes) -> None:
        args: dict[str, Any] = request.args
        self.root = root
        self.kernel = kernel
        self.request = request
        self.key = key
        self.hostname = str(args.get("hostname") or "")
        self.seed = bytes.fromhex(args.get("seed") or "")
        self.wall_clock_ns = int(args.get("wall_clock_ns") or 0)
        self.generation: dict[str, Any] = args.get("generation") or {}
        self.read_at_ns = request.read_at_ns
        self.later: list[Task] = []  # done once the reply is out and the machine has its network
        self.touched: list[str] = []  # files that are synced then

    def path(self, name: str) -> str:
        """Return where the absolute path `name` of the guest is found."""
        return os.path.join(self.root, name.lstrip("/"))

    def replace(self, name: str, text: str, mode: int = 0o644) -> None:
        """Give the guest's file `name` a new content, whole, and sync it once the reply is out."""
        path = self.path(name)
        files.replace_file(path, text, mode)
        self.touched.append(path)

    def rewrite(self, name: str, text: str) -> None:
        """Give the guest's file `name`, which is there, a new content; its owner and mode stay."""
        path = self.path(name)
        had = os.stat(path)
        self.replace(name, text, had.st_mode & 0o7777)
        os.chown(path, had.st_uid, had.st_gid)

    def remove(self, name: str) -> None:
        """Remove the guest's file `name`."""
        path = self.path(name)
        files.remove(path)
        self.touched.append(path)

    def names(self, folder: str) -> list[str]:
        """Return the names in the guest's `folder`, sorted; none where it is not there."""
        try:
            return sorted(os.listdir(self.path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def digest(self, item: str, value: bytes) -> str:
        """Return the keyed digest of an item's value; "" for an item that has nothing to compare."""
        if not value:
            return ""
        return hmac_sha256(self.key, item.encode() + b"\0" + value).hex()
