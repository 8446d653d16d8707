"""Where a migration stream goes: pages into the memory image at their own offsets, the rest into the device state.

QEMU writes into a pipe; a thread of ours reads, splits and writes. So no page is stored twice, and when we
die QEMU's write fails, it gives the migration up and the machine goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import LivecloneError, StoreError
from ...host import files, memory_image
from . import argv
from .session import Session

if TYPE_CHECKING:
    from ...formats.migration_stream import Splitter

_PIPE_BYTES = 1024 * 1024  # the most an unprivileged process may ask for (pipe(7))
NAME = "capture"


class Intake:
    """One stream being taken in; use `open_intake`."""

    def __init__(self, read_fd: int, splitter: Splitter, memory: Path, device_state: Path) -> None:
        self._read_fd = read_fd
        self._splitter = splitter
        self._memory = memory
        self._device_state = device_state
        self._first = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.create_task(asyncio.to_thread(self._run))

    async def first_page(self) -> None:
        """Wait for the first page: from here on QEMU itself keeps the memory as it was at the pause.

        Raises:
            StoreError, Corrupt: the intake failed before.
        """
        waiting = asyncio.ensure_future(self._first.wait())
        await asyncio.wait({waiting, self._work}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._work.done():
            await self._work

    async def failed(self) -> None:
        """Raise when the intake fails; return when it has ended well."""
        await asyncio.shield(self._work)

    async def finish(self) -> None:
        """Wait for the end of the stream; both files are complete afterwards."""
        await self._work

    def _run(self) -> None:
        try:
            self._take_in()
        except OSError as error:
            path = Path(os.fsdecode(error.filename or self._memory))
            raise files.explain(error, "writing a part of the snapshot", path) from error
        finally:
            # Closing our end makes QEMU's next write fail: that is how it learns that we gave up.
            os.close(self._read_fd)

    def _take_in(self) -> None:
        splitter = self._splitter
        with memory_image.create_image(self._memory) as image:
            sized = False
            while data := os.read(self._read_fd, _PIPE_BYTES):
                for run in splitter.feed(data):
                    if not sized:
                        image.resize(splitter.block_bytes)
                        sized = True
                        self._loop.call_soon_threadsafe(self._first.set)
                    image.write(run.offset, run.size_bytes, run.data)
            self._write_state(splitter.finish())
            image.resize(splitter.block_bytes)  # for a stream that held no page

    def _write_state(self, data: bytes) -> None:
        try:
            self._device_state.write_bytes(data)
        except OSError as error:
            raise files.explain(error, "writing a part of the snapshot", self._device_state) from error

    async def abandon(self) -> StoreError | None:
        """Wait until the thread has ended, whatever became of it; return why it could not write, if it could not."""
        try:
            await self._work
        except StoreError as error:
            return error
        except Exception:  # noqa: BLE001 - a stream that was cut short, for a reason that QEMU knows
            pass
        return None


def _make_splitter() -> Splitter:
    """Import numpy now: commands that capture nothing do without, and the pause must not wait for it (0.1 s)."""
    from ...formats.migration_stream import Splitter

    return Splitter(argv.RAM)


@contextlib.asynccontextmanager
async def open_intake(session: Session, memory: Path, device_state: Path) -> AsyncIterator[Intake]:
    """Lend QEMU the writing end of a pipe as `fd:capture` and take in what comes.

    On the way out by an error the thread has ended and both files are removed.

    Raises:
        StoreError: a file could not be written; what QEMU has to say of its broken pipe is only the consequence.
    """
    splitter = await asyncio.to_thread(_make_splitter)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        await session.lend(write_fd, NAME)
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    intake = Intake(read_fd, splitter, memory, device_state)
    try:
        yield intake
        await intake.finish()
    except BaseException as error:
        # If the migration never began QEMU still holds the pipe, and the thread would wait for ever.
        with contextlib.suppress(Exception):
            await session.call("closefd", fdname=NAME)
        reason = await intake.abandon()
        memory.unlink(missing_ok=True)
        device_state.unlink(missing_ok=True)
        if reason is not None and isinstance(error, LivecloneError):
            raise reason from error
        raise
