"""Applications' part, for programs that run on: a socket where they are told each event and acknowledge it.

    application                                  agent
    {"subscribe": "shop"}                  -->
                                           <--   {"subscribed": "shop", "generation": {...}}
                                           <--   {"id": 7, "event": "cloned", "generation": {...}, ...}
    {"id": 7, "ok": true}                  -->
    or {"id": 7, "error": "why not"}

A connection within the guest is part of its memory: a clone wakes up with it, so whoever was subscribed when the snapshot
was taken is asked in each clone. All are told at once; one thread reads from all of them.

A program that ends takes what it held with it, so it is dropped, also in the middle of an event. One that closes its
connection, or says nothing, and lives on still holds it: that is an error, which names it.

An agent that becomes a new process hands the connections over: a program that is not asked in a clone would not be missed.

Every local user may subscribe, and so hold a snapshot off; the error says which user did. Where the guest has a group
`liveclone`, only root and the members of that group may.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
import time

from . import files, frames, generation
from .errors import CallError, log, log_exception
from .request import elapsed_ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .context import Context

PATH = "/run/liveclone/applications"
GROUP = "liveclone"
MOST = 256  # connections
MOST_OF_A_USER = 32  # of them; root may have all
_LINE_LIMIT = 16 * 1024
_LONGEST_PATH = 107  # bytes, unix(7)
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred
_FLAGS, _START = 6, 19  # fields of proc_pid_stat(5) behind the name
HANDED = "LIVECLONE_CONNECTIONS"  # in the environment of an agent that takes over, see `hand_over`
_EXITING = 0x4  # PF_EXITING, sched.h: set before a process closes what it has open


class Answer:
    """What one subscriber says to one event."""

    def __init__(self, subscriber: Subscriber, id: int) -> None:
        self.subscriber = subscriber
        self.id = id
        self.settled = False
        self.dropped = False  # the program has ended
        self.error = ""
        self._began_ns = time.monotonic_ns()
        self._took_ms = 0.0

    def settle(self, error: str = "", *, dropped: bool = False) -> None:
        """Note what it said; what comes later counts no more."""
        if not self.settled:
            self.settled, self.error, self.dropped = True, error, dropped
            self._took_ms = elapsed_ms(self._began_ns)

    def report(self) -> dict[str, Any]:
        """Return what the host is told."""
        who = self.subscriber
        return {
            "name": who.name,
            "pid": who.pid,
            "uid": who.uid,
            "error": self.error,
            "took_ms": self._took_ms,
        }


class Subscriber:
    """One connection. Without a name it has not subscribed yet."""

    def __init__(self, connection: socket.socket, name: str = "") -> None:
        connection.setblocking(False)
        self.connection = connection
        self.splitter = frames.Splitter(_LINE_LIMIT)
        self.name = name
        self.answer: Answer | None = None
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid, self.uid, _ = _CREDENTIALS.unpack(credentials)
        self._start = _find_start(self.pid)

    def has_ended(self) -> bool:
        """Whether its process is gone, or about to."""
        return self._start is None or _find_start(self.pid) != self._start

    def send(self, message: dict[str, Any]) -> bool:
        """Send a message without waiting; False when it reads so little that there is no room."""
        data = frames.encode(message).lstrip(b"\n")
        try:
            return self.connection.send(data) == len(data)
        except BlockingIOError:
            return False
        except OSError:
            return True  # it has hung up: whoever reads from it will notice


class Subscribers:
    """The applications that are subscribed, and the socket at `root`/run/liveclone/applications."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._connected: dict[int, Subscriber] = {}
        self._changed = threading.Condition()
        self._last_id = 0

    # The socket

    def open(self, handed: str = "") -> None:
        """Listen, in a thread. A guest in which that cannot be goes on without; the journal says why.

        `handed` is what the agent before this one has handed over.
        """
        try:
            self._listener = _listen(self._root)
        except OSError as error:
            log(f"applications cannot subscribe: {error}")
            return
        self._stop_fd, self._stopping_fd = os.pipe2(os.O_CLOEXEC)
        self._epoll = select.epoll()
        for fd in (self._stop_fd, self._listener.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        if handed:
            self._take_over(handed)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def hand_over(self) -> str:
        """Return what `open` needs to go on with the connections in the program that this process is about to execute."""
        with self._changed:
            connections = [(fd, one.name) for fd, one in self._connected.items() if one.name]
            for fd, _ in connections:
                os.set_inheritable(fd, True)
            return json.dumps({"last_id": self._last_id, "connections": connections})

    def _take_over(self, handed: str) -> None:
        found = json.loads(handed)
        self._last_id = found["last_id"]
        for fd, name in found["connections"]:
            try:
                os.set_inheritable(fd, False)
                self._connected[fd] = Subscriber(socket.socket(fileno=fd), name)
                self._epoll.register(fd, select.EPOLLIN)
            except OSError:
                pass  # it hung up just then

    def close(self) -> None:
        """Let go of the socket and of all that are connected."""
        os.write(self._stopping_fd, b".")
        self._thread.join()
        with self._changed:
            for subscriber in list(self._connected.values()):
                self._drop(subscriber)
        self._epoll.close()
        self._listener.close()
        os.close(self._stop_fd)
        os.close(self._stopping_fd)

    def _serve(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._stop_fd:
                    return
                try:
                    if fd == self._listener.fileno():
                        self._accept()
                    else:
                        self._read(self._connected[fd])
                except Exception:  # the edge of a thread
                    log_exception("serving an application")

    def _accept(self) -> None:
        try:
            subscriber = Subscriber(self._listener.accept()[0])
        except OSError:
            return  # it has gone again
        with self._changed:
            fd = subscriber.connection.fileno()
            self._connected[fd] = subscriber
            self._epoll.register(fd, select.EPOLLIN)
            others = sum(other.uid == subscriber.uid for other in self._connected.values())
            if len(self._connected) > MOST or (subscriber.uid and others > MOST_OF_A_USER):
                self._refuse(subscriber, "there are too many connections")

    def _read(self, subscriber: Subscriber) -> None:
        try:
            data = subscriber.connection.recv(_LINE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        with self._changed:
            for line in subscriber.splitter.feed(data):
                self._take(subscriber, line)
            if not data or subscriber.splitter.dropped:
                self._drop(subscriber)

    def _take(self, subscriber: Subscriber, line: bytes) -> None:
        message = frames.find_object(line) or {}
        answer = subscriber.answer
        if not subscriber.name and is_name(message.get("subscribe")):
            subscriber.name = message["subscribe"]
            present = generation.load(self._root)
            subscriber.send({"subscribed": subscriber.name, "generation": present})
        elif subscriber.name and isinstance(message.get("id"), int):
            if answer is not None and answer.id == message["id"]:  # else it comes too late
                error = "" if message.get("ok") is True else str(message.get("error") or "it is not ready")
                answer.settle(error[:1000])
                self._changed.notify_all()
        else:
            self._refuse(
                subscriber, 'expected {"subscribe": NAME}, then {"id": ID, "ok": true} for each event'
            )

    def _refuse(self, subscriber: Subscriber, why: str) -> None:
        subscriber.send({"error": why})
        self._drop(subscriber)

    def _drop(self, subscriber: Subscriber) -> None:
        if self._connected.pop(subscriber.connection.fileno(), None) is None:
            return
        self._epoll.unregister(subscriber.connection)
        subscriber.connection.close()
        if subscriber.answer is not None:
            ended = subscriber.has_ended()
            subscriber.answer.settle("" if ended else "it hung up and runs on", dropped=ended)
        self._changed.notify_all()

    # The events

    def pids(self) -> set[int]:
        """Return the processes that are subscribed."""
        with self._changed:
            return {subscriber.pid for subscriber in self._connected.values() if subscriber.name}

    def tell(self, ctx: Context, event: str) -> list[Answer]:
        """Tell all who are subscribed of an event, and return what will hold their answers."""
        with self._changed:
            self._last_id += 1
            message = {
                "id": self._last_id,
                "event": event,
                "generation": ctx.generation or generation.load(self._root),
                "hostname": ctx.hostname,
                "snapshot": str(ctx.request.args.get("snapshot") or ""),
                "deadline_s": round(ctx.request.remaining_s(), 3),
            }
            answers = []
            for subscriber in [one for one in self._connected.values() if one.name]:
                subscriber.answer = Answer(subscriber, self._last_id)
                answers.append(subscriber.answer)
                if not subscriber.send(message):
                    subscriber.answer.settle("it does not read what it is told")
            return answers

    def gather(self, answers: Sequence[Answer], timeout_s: float) -> list[dict[str, Any]]:
        """Wait for the answers and report each: name, pid, uid, error, took_ms. Programs that ended are left out."""
        with self._changed:
            self._changed.wait_for(lambda: all(answer.settled for answer in answers), timeout_s)
            for answer in answers:
                answer.settle(f"it did not acknowledge within {timeout_s:.3g} s")
            return [answer.report() for answer in answers if not answer.dropped]


def check_answers(event: str, reports: Sequence[dict[str, Any]]) -> None:
    """Raise CallError "application-failed" naming each application that did not acknowledge."""
    failed = [report for report in reports if report["error"]]
    if failed:
        told = "; ".join(f"{r['name']} (pid {r['pid']}, user {r['uid']}): {r['error']}" for r in failed)
        raise CallError("application-failed", f"application at {event}: {told}", applications=list(reports))


def is_name(value: object) -> bool:
    """Whether an application may be called so: 1 to 64 characters that can be printed, no blank at either end."""
    return isinstance(value, str) and 0 < len(value) <= 64 and value.isprintable() and value == value.strip()


def _listen(root: str) -> socket.socket:
    path = os.path.join(root, PATH.lstrip("/"))
    folder, name = os.path.split(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    files.remove(path)  # of an agent before this one
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{folder_fd}/{name}"
        listener.bind(path if len(os.fsencode(path)) <= _LONGEST_PATH else short)
        group = _find_group(root)
        if group is not None:
            os.chown(path, -1, group)
        os.chmod(path, 0o666 if group is None else 0o660)
        listener.listen(64)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder_fd)
    return listener


def _find_group(root: str) -> int | None:
    """Return the number of the group that may subscribe, None where there is none.

    Read from the file: at boot, asking a directory server would have to wait for the network.
    """
    for line in (files.find_text(os.path.join(root, "etc/group")) or "").splitlines():
        fields = line.split(":")
        if fields[0] == GROUP and len(fields) > 2:
            return int(fields[2])
    return None


def _find_start(pid: int) -> str | None:
    """Return when a process was started, in the kernel's ticks; None for one that has ended, or does so."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if int(fields[_FLAGS]) & _EXITING else fields[_START]
