"""Overwrite the memory of programs as they end, before the kernel gives it to others.

What a program leaves is clean only when somebody has taken it anew, and the kernel takes pages for its own objects without
clearing them: parts of such a page can stay what they were for long, where no cleaning of free memory gets at them. On two
processors a secret of a stopped program was in the capture after four of eight scrubs.

    seize their threads ── the command that ends them ── a thread that ends stands still, with all it has (PTRACE_EVENT_EXIT)
                           ├─ its vector registers are cleared: copies are made through them, and they outlast it in the slab
                           │  of the kernel's tasks (found there: of a secret of 32 bytes, 16)
                           └─ the last one of its process: private pages that are there are overwritten ── it goes on

The kernel lets go of all of them, too, when the thread that follows them ends, whatever for.

NOT HANDLED: what a program gives back before its end, or by becoming another one (exec); memory that programs share (tmpfs,
memfd); what is in swap; programs that a debugger has already, or whose last thread ends by itself in the microseconds in
which the whole ends: the kernel does not stop it then. None may be our child: only we would be told of its end.
Sources: ptrace(2); proc(5): maps, mem; Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import threading

from . import process
from .errors import log, log_exception
from .files import find_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_CONT, _DETACH, _GETEVENTMSG, _SEIZE, _INTERRUPT, _LISTEN = 7, 17, 0x4201, 0x4206, 0x4207, 0x4208
_FORK, _VFORK, _CLONE, _EXEC, _EXIT, _STOP = 1, 2, 3, 4, 6, 128
_OPTIONS = sum(1 << event for event in (_FORK, _VFORK, _CLONE, _EXEC, _EXIT))
_GROUP_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_OWN_AND_ALL_KINDS = 0x20000000 | 0x40000000  # __WNOTHREAD | __WALL, linux/wait.h

_GETREGSET, _SETREGSET = 0x4204, 0x4205
_MOST_REGISTERS = 65536
# Which set has the vector registers (NT_X86_XSTATE, NT_PRFPREG: linux/elf.h), and what of it says which of them are in use.
_VECTORS = {"x86_64": (0x202, (slice(24, 32), slice(512, 576))), "aarch64": (2, ())}

# Of an entry of pagemap. A page that others have too would be copied to be overwritten: the last of them has it alone.
_PRESENT, _FILE, _ALONE = 1 << 63, 1 << 61, 1 << 56
_PAGE = os.sysconf("SC_PAGE_SIZE")
_RUN = 512  # pages that are looked at, and written, at once


def run(start: Callable[[], process.Child], find: Callable[[], Iterable[int]]) -> int:
    """Start a command that ends processes and wait for it, overwriting what they leave; return its exit code.

    Args:
        find: returns the processes that may end. It is asked until it names no other ones: they may be starting some.

    Raises what `start` raises. A process that cannot be followed ends as it would have, and the journal says why.
    """
    children: list[process.Child] = []
    failed: list[BaseException] = []

    def follow() -> None:
        tracer = None
        try:
            tracer = _Tracer()
            while sum(map(tracer.seize, find())):
                pass
        except Exception:
            log_exception("following programs that are to end")
        try:
            children.append(start())  # in this thread: it is told of its end as of theirs
        except BaseException as error:
            failed.append(error)
            return
        try:
            if tracer is not None:
                tracer.follow(children[0].pid)
        except Exception:
            log_exception("following programs that end")

    thread = threading.Thread(target=follow, name="wiping")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return children[0].wait()


class _Tracer:
    """Follows processes; of use in the thread that made it alone, and as long as that one lives."""

    def __init__(self) -> None:
        import ctypes  # seldom needed

        self._ctypes = ctypes
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.restype = ctypes.c_long
        self._libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._process_of: dict[int, int] = {}  # of each thread that is known
        self._early: set[int] = set()  # threads that stand still until their maker's event has told of them
        self._ending: set[int] = set()
        self._is_leaving = False
        # Of processes that may run in another one's memory, until they have one of their own: that one.
        self._lender_of: dict[int, int] = {}

    def seize(self, pid: int) -> bool:
        """Begin to follow a process; False when all of its threads were known."""
        found = False
        while new := [tid for tid in _threads(pid) if tid not in self._process_of]:
            found = True
            for tid in new:
                self._process_of[tid] = pid
                if self._ptrace(_SEIZE, tid, _OPTIONS) == errno.EPERM:
                    log(f"process {pid} cannot be followed: what it leaves is not overwritten")
        return found

    def follow(self, child: int) -> None:
        """Let go on whatever stops, until that child of ours has ended; then let go of those that have not."""
        while True:
            # Only looked at: the child is to be waited for by whoever has it, and its number stays its own until then.
            event = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WNOWAIT | _OWN_AND_ALL_KINDS)
            if event is None or event.si_pid == child:
                break
            self._take_event(event.si_pid)
        # Each is to stop once more: a signal that is just being delivered would be lost with us.
        self._is_leaving = True
        for tid in list(self._process_of):
            if self._ptrace(_INTERRUPT, tid, 0):
                del self._process_of[tid]
        while self._process_of:
            self._take_event(next(iter(self._process_of)))

    def _take_event(self, tid: int) -> None:
        _, status = os.waitpid(tid, _OWN_AND_ALL_KINDS)
        if not os.WIFSTOPPED(status):
            self._lender_of.pop(self._process_of.pop(tid, 0), None)
            return
        number, event = os.WSTOPSIG(status), status >> 16
        if event == _EXIT:
            self._end(tid)
        elif event in (_FORK, _VFORK, _CLONE):
            self._tell_of(tid, event)
        elif event == _EXEC:
            self._lender_of.pop(self._process_of.get(tid, tid), None)
        elif event == _STOP and tid not in self._process_of:
            self._early.add(tid)
            return
        elif event == _STOP and number in _GROUP_STOPS and not self._is_leaving:
            self._ptrace(_LISTEN, tid, 0)
            return
        self._go_on(tid, 0 if event else number)

    def _go_on(self, tid: int, number: int = 0) -> None:
        """Let a thread that we have stopped go on, with that signal delivered to it."""
        self._ptrace(_DETACH if self._is_leaving else _CONT, tid, number)
        if self._is_leaving:
            self._process_of.pop(tid, None)

    def _tell_of(self, maker: int, event: int) -> None:
        message = self._ctypes.c_ulong()
        self._libc.ptrace(_GETEVENTMSG, maker, None, self._ctypes.addressof(message))
        tid, lender = message.value, self._process_of.get(maker, maker)
        pid = lender if tid in _threads(lender) else tid
        self._process_of[tid] = pid
        self._ending.discard(tid)
        if pid == tid and event != _FORK:
            self._lender_of[pid] = lender
        if tid in self._early:
            self._early.discard(tid)
            self._go_on(tid)

    def _end(self, tid: int) -> None:
        pid = self._process_of.get(tid, tid)
        self._ending.add(tid)
        is_last = self._ending.issuperset(_threads(pid))
        try:
            self.clear_registers(tid)
            if is_last and pid not in self._lender_of and pid not in self._lender_of.values():
                _overwrite(tid)
        except OSError as error:  # it was killed while it stood still; the others are followed all the same
            log(f"what process {pid} leaves is not overwritten: {error}")

    def clear_registers(self, tid: int) -> None:
        """Clear the vector registers of a thread that stands still."""
        number, kept = _VECTORS.get(os.uname().machine, (0, ()))
        if number:
            registers = self.registers(_GETREGSET, tid, number)
            cleared = bytearray(len(registers))
            for part in kept:
                cleared[part] = registers[part]
            self.registers(_SETREGSET, tid, number, bytes(cleared))

    def registers(self, request: int, tid: int, number: int, data: bytes = bytes(_MOST_REGISTERS)) -> bytes:
        """Get, or set to `data`, a set of registers; return what it is. Raises OSError."""
        buffer = self._ctypes.create_string_buffer(data, len(data))
        vector = (self._ctypes.c_size_t * 2)(self._ctypes.addressof(buffer), len(data))  # struct iovec
        if self._libc.ptrace(request, tid, number, self._ctypes.addressof(vector)) < 0:
            code = self._ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return buffer.raw[: vector[1]]

    def _ptrace(self, request: int, tid: int, data: int) -> int:
        """Return the errno, 0 for none. A thread that was killed meanwhile (ESRCH) is no fault."""
        return self._ctypes.get_errno() if self._libc.ptrace(request, tid, None, data) < 0 else 0


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return []


def _overwrite(tid: int) -> None:
    """Overwrite the pages that a process has for itself; it stands still."""
    zeros = bytes(_RUN * _PAGE)
    mem = os.open(f"/proc/{tid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        with open(f"/proc/{tid}/pagemap", "rb", buffering=0) as pagemap:
            for start, end in _private(find_text(f"/proc/{tid}/maps") or ""):
                for first in range(start, end, _RUN * _PAGE):
                    count = min(_RUN, (end - first) // _PAGE)
                    entries = memoryview(os.pread(pagemap.fileno(), count * 8, first // _PAGE * 8)).cast("Q")
                    for page, pages in _runs(entries):
                        _write(mem, zeros[: pages * _PAGE], first + page * _PAGE)
    finally:
        os.close(mem)


def _private(maps: str) -> Iterator[tuple[int, int]]:
    """Yield where each mapping begins and ends that changes for this process alone, whether it may write to it or not."""
    for line in maps.splitlines():
        where, mode = line.split()[:2]
        start, end = (int(word, 16) for word in where.split("-"))
        if mode.endswith("p") and end < 1 << 63:  # the kernel's own page (vsyscall) lies above
            yield start, end


def _runs(entries: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the first, and how many there are, of pages side by side that are there, no file's, and nobody else's."""
    if max(entries, default=0) < _PRESENT:  # quick, since a program may have reserved very much
        return
    own = [entry & (_PRESENT | _FILE | _ALONE) == _PRESENT | _ALONE for entry in entries]
    at = 0
    for is_own, group in itertools.groupby(own):
        count = len(list(group))
        if is_own:
            yield at, count
        at += count


def _write(mem: int, data: bytes, address: int) -> None:
    try:
        os.pwrite(mem, data, address)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EFAULT):  # a page of the kernel's own (vvar), or of a device
            raise
