"""Put the agent into a guest that nobody prepared, and take it out again: what an image builder does, in a system that runs.

    agent.pyz --install    this file, its unit, folders for hooks; started now and at every boot
    agent.pyz --remove     ended, and all of it gone; what others have put into the folders stays

An agent that was there before, from an image, is brought up to date by --install, and --remove leaves it: the file
`installed` tells the two apart. Both may be asked again, and after a death in the middle.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile

from . import files
from .errors import log
from .precompile import precompile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Systemctl = Callable[..., None]

SERVICE = "liveclone-agent.service"
ARCHIVE = "usr/lib/liveclone/agent.pyz"
MARK = "usr/lib/liveclone/installed"
UNIT = f"etc/systemd/system/{SERVICE}"
HOOKS = "etc/liveclone/hooks.d"
EVENTS = ("prepare", "cloned", "resumed")
NOT_OURS = 3  # exit code of --remove for an agent that came with the image
_TIMEOUT_S = 60.0


def systemctl(*words: str) -> None:
    """Have systemd do something; raises OSError or CalledProcessError, its reason is on stderr."""
    subprocess.run(["systemctl", "--quiet", *words], check=True, timeout=_TIMEOUT_S)


def install(archive: str, root: str = "/", run: Systemctl = systemctl) -> int:
    """Install the zipapp `archive`, which may lie anywhere, and start it; a failure leaves nothing of a first one."""
    place, mark, unit = (os.path.join(root, path) for path in (ARCHIVE, MARK, UNIT))
    first = not os.path.exists(place)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    try:
        if first:
            files.replace_file(mark, "by agent.pyz --install\n")
        with zipfile.ZipFile(archive) as packed:
            service = packed.read(SERVICE).decode()
        _replace_archive(place, archive)
        files.replace_file(unit, service)
        for event in EVENTS:
            os.makedirs(os.path.join(root, HOOKS, event), exist_ok=True)
        run("daemon-reload")
        run("enable", SERVICE)
        run("restart", SERVICE)
    except BaseException:
        if first:
            remove(root, run)
        raise
    return 0


def remove(root: str = "/", run: Systemctl = systemctl) -> int:
    """End the agent and remove what `install` made; NOT_OURS, and nothing is touched, where that was not it."""
    place, mark, unit = (os.path.join(root, path) for path in (ARCHIVE, MARK, UNIT))
    if not os.path.exists(mark):
        return NOT_OURS if os.path.exists(place) else 0
    if os.path.exists(unit):
        _attempt(run, "disable", "--now", SERVICE)  # it may be that systemd never knew it
        files.remove(unit)
        _attempt(run, "daemon-reload")
    files.remove(place)
    files.remove(mark)
    for folder in (*(os.path.join(HOOKS, event) for event in EVENTS), HOOKS, os.path.dirname(HOOKS)):
        _remove_empty(os.path.join(root, folder))
    _remove_empty(os.path.dirname(place))
    return 0


def _attempt(run: Systemctl, *words: str) -> None:
    try:
        run(*words)
    except (OSError, subprocess.SubprocessError) as error:
        log(f"systemctl {' '.join(words)}: {error}")


def _replace_archive(place: str, archive: str) -> None:
    temporary = f"{place}.new"
    shutil.copyfile(archive, temporary)
    os.chmod(temporary, 0o644)
    os.replace(temporary, place)
    precompile(place)


def _remove_empty(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:  # it holds what is somebody's, or is gone
        pass
