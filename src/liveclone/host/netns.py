"""Network namespaces with a name, and code that runs inside one.

    /run/netns/NAME        a file onto which the namespace is mounted, as `ip netns add` does it, so that
                           `ip netns exec NAME tcpdump -i lc0` works for the user

A namespace belongs to a thread, not to a process: `run_inside` starts a thread, moves it, and lets it end there,
so nothing has to be moved back. What the thread opens (sockets, taps) or starts (processes) stays inside and
is used from anywhere, an event loop in the main thread included.

A new namespace is made without a name, filled, and named last, so none is ever seen half-made. `hold` and
`remove` take the same lock (flock on the namespace's own file), so nobody adds something to a namespace
whose name is just being removed.

The mount is made in the mount namespace of the caller: a service that runs in a private one keeps it to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..errors import LivecloneError, NotFound, Refused, Unsupported

T = TypeVar("T")

FOLDER = Path("/run/netns")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_NEWNET = 0x40000000  # CLONE_NEWNET, sched.h
_GET_TYPE = 0xB703  # NS_GET_NSTYPE, ioctl_nsfs(2): tells a namespace from a file that only has its name
_BIND, _REC, _SHARED, _DETACH = 0x1000, 0x4000, 1 << 20, 2  # mount(2), umount2(2)


@functools.cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc(), name)(*arguments) != 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if sys.version_info >= (3, 12):
    _setns = os.setns
    _unshare = os.unshare
else:

    def _setns(fd: int, kind: int) -> None:
        _call("setns", fd, kind)

    def _unshare(kind: int) -> None:
        _call("unshare", kind)


def path(namespace: str) -> Path:
    """Return the file of a namespace.

    Raises:
        Refused: the name is empty, too long, or could lead out of the folder.
    """
    if not _NAME.fullmatch(namespace):
        raise Refused(
            f"{namespace[:40]!r} cannot be a network namespace",
            code="bad-name",
            tried="reading the name of a network namespace",
            next_step="use letters, digits and dashes",
        )
    return FOLDER / namespace


def translate(error: OSError, tried: str, on: str) -> LivecloneError:
    """Return our error for what the kernel said about links and namespaces."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return Unsupported(
            "a bridge network needs root",
            code="needs-root",
            tried=tried,
            on=on,
            seen=str(error),
            next_step="run as root, or use the user network",
        )
    return Unsupported(
        f"the kernel refused: {tried}",
        code="network-failed",
        tried=tried,
        on=on,
        seen=str(error),
        next_step="see that the kernel has the modules bridge and tun, or use the user network",
    )


def _open(file: Path) -> int | None:
    """Open a namespace; None when there is no such file or nothing is mounted on it."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if fcntl.ioctl(fd, _GET_TYPE) == _NEWNET:
            return fd
    except OSError as error:
        if error.errno != errno.ENOTTY:
            os.close(fd)
            raise
    os.close(fd)
    return None


def exists(namespace: str) -> bool:
    """Tell whether the namespace is there."""
    fd = _open(path(namespace))
    if fd is None:
        return False
    os.close(fd)
    return True


@contextlib.contextmanager
def _opened(namespace: str) -> Iterator[int]:
    file = path(namespace)
    try:
        fd = _open(file)
    except OSError as error:
        raise translate(error, "opening a network namespace", namespace) from error
    if fd is None:
        raise NotFound(
            f"there is no network namespace {namespace}",
            code="no-network",
            tried="opening a network namespace",
            on=namespace,
            next_step="start a machine on the bridge network: it makes the namespace",
        )
    try:
        yield fd
    finally:
        os.close(fd)


def _still_named(fd: int, file: Path) -> bool:
    ours = os.fstat(fd)
    with contextlib.suppress(FileNotFoundError):
        theirs = os.stat(file)
        return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
    return False


def _in_thread(action: Callable[[], T]) -> T:
    """Run `action` in a thread of its own, which ends with it; its error becomes ours."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(action())
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            errors.append(error)

    thread = threading.Thread(target=work, name="netns")
    thread.start()
    thread.join()
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # breaks the circle error -> traceback -> this frame -> error
    return results[0]


def run_inside(namespace: str, action: Callable[[], T]) -> T:
    """Run `action` in a thread inside the namespace and return its result. Costs 0.1 ms.

    Raises:
        NotFound: there is no such namespace (code "no-network").
        Unsupported: we are not root (code "needs-root").
        Whatever `action` raises.
    """
    with _opened(namespace) as fd:
        return _in_thread(lambda: _enter_and_run(fd, namespace, action))


def hold(namespace: str, action: Callable[[], T]) -> T:
    """Like `run_inside`, while nobody can remove the namespace's name: for what must not end up in a nameless one."""
    with _opened(namespace) as fd:
        fcntl.flock(fd, fcntl.LOCK_SH)  # held by `remove` for a millisecond at most; goes with the descriptor
        if not _still_named(fd, path(namespace)):
            raise NotFound(
                f"network namespace {namespace} was removed just now",
                code="no-network",
                tried="entering a network namespace",
                on=namespace,
                next_step="try again",
            )
        return _in_thread(lambda: _enter_and_run(fd, namespace, action))


def _enter(fd: int, namespace: str) -> None:
    try:
        _setns(fd, _NEWNET)
    except OSError as error:
        raise translate(error, "entering a network namespace", namespace) from error


def _enter_and_run(fd: int, namespace: str, action: Callable[[], T]) -> T:
    _enter(fd, namespace)
    return action()


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Move the calling thread into the namespace, and back at the end. Do not `await` inside.

    Raises:
        NotFound: there is no such namespace.
        Unsupported: we are not root.
    """
    with _opened(namespace) as there:
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there, namespace)
            try:
                yield
            finally:
                _setns(back, _NEWNET)
        finally:
            os.close(back)


def create(namespace: str, prepare: Callable[[], None]) -> bool:
    """Make a namespace, run `prepare` in a thread inside it, then give it its name.

    Returns False, and leaves nothing, when another namespace had got the name meanwhile.

    Raises:
        Unsupported: we are not root.
        Whatever `prepare` raises; nothing is left.
    """
    file = path(namespace)

    def work() -> bool:
        _unshare(_NEWNET)
        prepare()
        return _give_name(file)

    try:
        return _in_thread(work)
    except OSError as error:
        raise translate(error, "making a network namespace", namespace) from error


def _give_name(file: Path) -> bool:
    """Mount the calling thread's namespace on `file`, unless a namespace is mounted there."""
    FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _folder_locked():
        _share_folder()
        present = _open(file)
        if present is not None:
            os.close(present)
            return False
        os.close(os.open(file, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0))
        try:
            source = f"/proc/self/task/{threading.get_native_id()}/ns/net"
            _call("mount", source.encode(), os.fsencode(file), b"none", _BIND, None)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        return True


@contextlib.contextmanager
def _folder_locked() -> Iterator[None]:
    """Between making a name and mounting on it nobody may take the name away. iproute2 locks the same way."""
    folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _share_folder() -> None:
    """Make the folder a shared mount, so that a later umount takes effect in every mount namespace (ip-netns(8))."""
    target = os.fsencode(FOLDER)
    try:
        _call("mount", b"", target, b"none", _SHARED | _REC, None)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: not a mount point yet
            raise
        _call("mount", target, target, b"none", _BIND | _REC, None)
        _call("mount", b"", target, b"none", _SHARED | _REC, None)


def remove(namespace: str, unless: Callable[[], bool]) -> bool:
    """Take the namespace's name away; it ends with its last process and descriptor. Absent is no error.

    `unless` runs inside, with the lock that `hold` takes: when it returns True, nothing is removed and False returned.

    Raises:
        Unsupported: we are not root.
    """
    file = path(namespace)
    try:
        if not file.exists():
            return True
        with _folder_locked():
            return _remove_locked(namespace, file, unless)
    except OSError as error:
        raise translate(error, "removing a network namespace", namespace) from error


def _remove_locked(namespace: str, file: Path, unless: Callable[[], bool]) -> bool:
    fd = _open(file)
    if fd is None:  # a name without a namespace
        file.unlink(missing_ok=True)
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _in_thread(lambda: _enter_and_run(fd, namespace, unless)):
            return False
        _call("umount2", os.fsencode(file), _DETACH)
        file.unlink(missing_ok=True)
        return True
    finally:
        os.close(fd)


def make_socket(
    namespace: str, *, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
) -> socket.socket:
    """Return a non-blocking socket that belongs to the namespace; use it from any thread."""
    made = run_inside(namespace, lambda: socket.socket(family, kind | socket.SOCK_CLOEXEC))
    made.setblocking(False)
    return made


async def open_connection(
    namespace: str, host: str, port: int, *, limit: int = 1 << 20
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect by TCP to an address (no name) as seen from inside the namespace.

    Raises:
        NotFound: there is no such namespace.
        OSError: nobody answers there.
    """
    made = make_socket(namespace)
    try:
        await asyncio.get_running_loop().sock_connect(made, (host, port))
        return await asyncio.open_connection(sock=made, limit=limit)
    except BaseException:
        made.close()
        raise
