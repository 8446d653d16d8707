"""Put our hook where libvirt runs it, see what is there, take it away.

    /etc/libvirt/hooks/qemu.d/liveclone      root's, 0755:
        #!/bin/sh
        # liveclone's hook for libvirt ...
        # {"version": ..., "python": ..., "tickets": ..., "images": [...]}      what it was installed with
        ... no ticket, or another step than `start begin`: exit 0 ...           the shell alone
        ... hook_program.py ...                                                 the rest, in the same file

libvirt runs it at five or more steps in the life of every domain of the host, and would refuse each start if it could
not be run. So what concerns others is left to the shell, in a millisecond, and a host whose Python has gone or is just
being upgraded starts its domains as ever. Shell and Python read the same file: what is shell is a text to Python.

libvirt (6.5 and later) reads `qemu.d` at each step, but only if it found some script when it started or was
told to look again (SIGHUP, which `systemctl reload` sends).
"""

from __future__ import annotations

import enum
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import Conflict, NotFound, Refused, Unsupported
from ...host import files
from ...model.base import Value
from . import tickets as ticket_files

HOOKS = Path("/etc/libvirt/hooks")
NAME = "liveclone"

_MARK = "# liveclone's hook for libvirt."
_PROGRAM = Path(__file__).with_name("hook_program.py")
_PYTHONS = ("/usr/bin/python3", "/usr/libexec/platform-python", os.path.realpath(sys.executable))
_PYTHON_IS_GOOD = "import sys; sys.exit(sys.version_info < (3, 8))"
# What means nothing to the shell between quotes, to Python in a text, or to the list of folders.
_PLAIN = re.compile(r"/[\w .,+@%=~/-]*", re.ASCII)

_SHELL = """\
#!/bin/sh
{mark} `liveclone libvirt install-hook` wrote it, `remove-hook` removes it.
# {settings}
# For all domains that are not ours it does nothing, and that is what the shell sees to. Python reads on below.
''':'
[ "$2/$3" = start/begin ] || exit 0
[ -x '{python}' ] || exit 0
for ticket in '{tickets}'/*.json; do
    [ -f "$ticket" ] && exec '{python}' -I -S "$0" '{tickets}' '{images}' "$@"
done
exit 0
':''' \\
"""


class HookState(enum.StrEnum):
    """What is in libvirt's folder under our name."""

    ABSENT = "absent"
    CURRENT = "current"
    OLD = "old"  # ours, of another version, or changed by somebody
    FOREIGN = "foreign"  # not ours: never overwritten, never removed
    UNUSABLE = "unusable"  # ours, but not executable, or others may write it

    @property
    def is_ours(self) -> bool:
        return self in (HookState.CURRENT, HookState.OLD, HookState.UNUSABLE)


class HookStatus(Value, frozen=True, kw_only=True):
    """What is installed: `path` of the hook, its `state` and why, and what it was installed with.

    Args:
        images: folders whose memory images it accepts.
        noticed: another script was there before ours, so libvirt looks into the folder; False: nobody knows.
    """

    path: str
    state: HookState
    seen: str = ""
    version: str = ""
    python: str = ""
    tickets: str = ""
    images: tuple[str, ...] = ()
    noticed: bool = False

    def accepts(self, folder: Path) -> bool:
        """Tell whether it links in memory images of this folder."""
        inside = folder.resolve()
        return self.state is HookState.CURRENT and any(inside.is_relative_to(image) for image in self.images)


def status(hooks: Path = HOOKS) -> HookStatus:
    """Return what is installed in libvirt's folder `hooks`.

    Raises:
        StoreError: it cannot be read.
    """
    path = hooks / "qemu.d" / NAME
    found = HookStatus(path=str(path), state=HookState.FOREIGN, noticed=_has_other_script(hooks))
    try:
        seen = path.lstat()
        if not path.is_file() or path.is_symlink():
            return found.replace(seen="no regular file")  # type: ignore[no-any-return]
        text = path.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return found.replace(state=HookState.ABSENT)  # type: ignore[no-any-return]
    except OSError as error:
        raise files.explain(error, "looking at libvirt's hook", path) from error
    settings = _read_settings(text)
    if settings is None:
        return found.replace(seen="a file that is not liveclone's")  # type: ignore[no-any-return]
    if text != _render(settings):
        state, words = HookState.OLD, f"from liveclone {settings['version']}, or changed since"
    elif seen.st_mode & 0o111 != 0o111:
        state, words = HookState.UNUSABLE, f"not executable, mode {seen.st_mode & 0o7777:04o}"
    elif seen.st_uid not in (0, os.geteuid()) or seen.st_mode & 0o022:
        state, words = (
            HookState.UNUSABLE,
            f"others may write it: owner {seen.st_uid}, mode {seen.st_mode & 0o7777:04o}",
        )
    elif not os.access(settings["python"], os.X_OK):
        state, words = HookState.UNUSABLE, f"{settings['python']} is gone"
    else:
        state, words = HookState.CURRENT, ""
    return found.replace(state=state, seen=words, **settings)  # type: ignore[no-any-return]


def install(
    hooks: Path = HOOKS, *, images: Sequence[Path] = (), tickets: Path = ticket_files.FOLDER
) -> HookStatus:
    """Install the hook, or bring the one that is there up to date, and return what is installed now.

    Args:
        images: folders whose memory images it is to accept, besides those that it accepts already.
        tickets: where the driver will leave its tickets.

    Raises:
        NotFound: there is no libvirt. Conflict: the name is taken by a file that is not ours. Refused: a folder cannot be
        used. Unsupported: no Python for it. StoreError: it cannot be written. In all cases what was there is there still.
    """
    before = status(hooks)
    path = Path(before.path)
    if not hooks.parent.is_dir():
        raise NotFound(
            f"{hooks.parent} does not exist: libvirt is not installed here",
            code="no-libvirt",
            tried="installing the hook",
            on=str(path),
            next_step="install libvirt, or name its hooks' folder with --hooks-dir",
        )
    if before.state is HookState.FOREIGN:
        raise _foreign(before, "installing the hook")
    settings: dict[str, Any] = {
        "version": __version__,
        "python": _find_python(),
        "tickets": _check_folder(tickets),
        "images": tuple(sorted({_check_folder(image) for image in (*map(Path, before.images), *images)})),
    }
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise files.explain(error, "making libvirt's folder of hooks", path.parent) from error
    _write(path, _render(settings).encode())
    return status(hooks)


def remove(hooks: Path = HOOKS) -> bool:
    """Remove the hook; False if there is none.

    Raises:
        Conflict: the file is not ours; it stays. StoreError: it cannot be removed.
    """
    found = status(hooks)
    if found.state is HookState.FOREIGN:
        raise _foreign(found, "removing the hook")
    path = Path(found.path)
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise files.explain(error, "removing the hook", path) from error
    return True


def _render(settings: dict[str, Any]) -> str:
    shell = _SHELL.format(
        mark=_MARK,
        settings=json.dumps(settings),
        python=settings["python"],
        tickets=settings["tickets"],
        images=":".join(settings["images"]),
    )
    return shell + _PROGRAM.read_text()


def _read_settings(text: str) -> dict[str, Any] | None:
    """Return what a hook of ours was installed with; None if it is not ours."""
    lines = text.split("\n", 3)
    if len(lines) < 4 or not lines[1].startswith(_MARK):
        return None
    try:
        read = json.loads(lines[2].removeprefix("#"))
        return {
            **{key: str(read[key]) for key in ("version", "python", "tickets")},
            "images": tuple(str(image) for image in read["images"]),
        }
    except (ValueError, KeyError, TypeError):
        return {"version": "?", "python": "", "tickets": "", "images": ()}


def _write(path: Path, data: bytes) -> None:
    """Write it whole, with its mode and whatever the umask: libvirt may be about to run it."""
    old = os.umask(0o022)
    try:
        files.write_atomic(path, data, mode=0o755)
    finally:
        os.umask(old)


def _has_other_script(hooks: Path) -> bool:
    try:
        others = [entry for entry in (hooks / "qemu.d").iterdir() if entry.name != NAME]
    except OSError:
        others = []
    return any(os.access(path, os.X_OK) and path.is_file() for path in (hooks / "qemu", *others))


def _find_python() -> str:
    for python in _PYTHONS:
        if _PLAIN.fullmatch(python) and os.access(python, os.X_OK):
            ended = subprocess.run([python, "-I", "-S", "-c", _PYTHON_IS_GOOD], check=False)
            if ended.returncode == 0:
                return python
    raise Unsupported(
        "there is no Python that the hook can run with",
        code="no-python",
        tried="looking for Python 3.8 or later",
        on=", ".join(_PYTHONS),
        next_step="install python3",
    )


def _check_folder(folder: Path) -> str:
    text = str(folder.resolve())
    if text == "/" or not _PLAIN.fullmatch(text):
        raise Refused(
            f"{text!r} cannot be a folder of the hook's",
            code="bad-folder",
            tried="installing the hook",
            on=text,
            next_step="choose a path of letters, digits and any of . , + @ % = ~ _ - and blanks",
        )
    return text


def _foreign(found: HookStatus, tried: str) -> Conflict:
    return Conflict(
        f"{found.path} is not liveclone's",
        code="foreign-hook",
        tried=tried,
        on=found.path,
        seen=found.seen,
        next_step="see whose it is, and give it another name",
    )
