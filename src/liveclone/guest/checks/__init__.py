"""The clone-safety checks, one file each: what in this guest is not safe to copy. They look and change nothing.

A module of this package that defines `CHECK` takes part; nothing else names it. Each finding has a remedy:

    hook      it is taken care of: an executable in hooks.d/cloned is named after the service, or the service has
              subscribed, or is in the list of those that are restarted
    restart   the service is to be started anew in each clone
    accept    it does no harm where one knows of it; the advice says what happens
    refuse    two machines must not have it: take it away before the snapshot
"""

from __future__ import annotations

import glob
import importlib
import os
import pkgutil

from .. import restart
from ..hooks import find_hooks
from ..programs import Program, list_programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence
    from typing import ClassVar

    from ..items import Fixed

    Finding = dict[str, str]


class Guest:
    """What the checks look at; read once for all of them. `subscribed` holds processes, `shared` items of this guest."""

    def __init__(self, root: str, subscribed: Container[int] = (), shared: Sequence[Fixed] = ()) -> None:
        self.root = root
        self.shared = shared
        self.programs: list[Program] = list_programs(root)
        self._hooks = find_hooks(root, "cloned")
        self._subscribed = {
            program.unit or program.pid for program in self.programs if program.pid in subscribed
        }
        self._restarted = {n if "." in n else f"{n}.service" for n in restart.find_units(root)}

    def find(self, *patterns: str) -> list[str]:
        """Return the paths that fit, as the guest knows them; in `~/x` the ~ is each user's home."""
        found: set[str] = set()
        for pattern in patterns:
            starts = self.homes() if pattern.startswith("~") else [""]
            for start in starts:
                path = start + pattern.lstrip("~")
                found.update(glob.glob(os.path.join(self.root, path.lstrip("/"))))
        return sorted("/" + os.path.relpath(path, self.root) for path in found)

    def homes(self) -> list[str]:
        """Return the home folders of all users."""
        text = self.read("/etc/passwd")
        lines = [line.split(":") for line in text.splitlines()]
        return sorted({fields[5].rstrip("/") for fields in lines if len(fields) > 6 and fields[5] != "/"})

    def read(self, path: str) -> str:
        """Return the text of a file of the guest; "" where there is none."""
        try:
            with open(os.path.join(self.root, path.lstrip("/")), encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    def has_content(self, path: str) -> bool:
        """Whether a path is a file that is not empty, or a folder with something in it."""
        full = os.path.join(self.root, path.lstrip("/"))
        try:
            return bool(os.listdir(full)) if os.path.isdir(full) else os.path.getsize(full) > 0
        except OSError:
            return False

    def is_file(self, path: str) -> bool:
        return os.path.isfile(os.path.join(self.root, path.lstrip("/")))

    def care_for(self, program: Program) -> str:
        """Return what renews a program in a clone, in words; "" for nothing.

        A hook counts that is named after the service: 10-nginx, nginx.sh for nginx.service.
        """
        plain = program.unit.rpartition(".")[0].partition("@")[0]
        if (program.unit or program.pid) in self._subscribed:
            return f"{program.unit or program.name} has subscribed and is told in each clone"
        if program.unit in self._restarted:
            return f"{program.unit} is restarted in each clone"
        if plain and any(plain in name for name in self._hooks):
            return f"a hook for {program.unit} runs in each clone"
        return ""


class Check:
    """One kind of thing that should not be copied unthinkingly."""

    name: ClassVar[str]

    def look(self, guest: Guest) -> Iterable[Finding]:
        """Return what is found, as `finding` makes it."""
        raise NotImplementedError


def finding(subject: str, seen: str, remedy: str, advice: str) -> Finding:
    """Return one finding: what it is about, what was seen of it, and what can be done."""
    return {"subject": subject, "seen": seen, "remedy": remedy, "advice": advice}


def remedy_by_service(guest: Guest, program: Program, otherwise: str) -> tuple[str, str]:
    """Return remedy and advice for a program that has to take part itself, or to be started anew."""
    care = guest.care_for(program)
    if care:
        return "hook", care
    if program.unit:
        return (
            "restart",
            f"write {program.unit} into /etc/liveclone/restart, or put a hook for it into /etc/liveclone/hooks.d/cloned: "
            f"{otherwise}",
        )
    return "accept", f"it belongs to no service; end it, or know that {otherwise}"


def load_checks() -> list[Check]:
    """Return one of each check, by name."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    checks: list[Check] = [module.CHECK() for module in modules if hasattr(module, "CHECK")]
    return sorted(checks, key=lambda check: check.name)
