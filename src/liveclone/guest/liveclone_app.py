#!/usr/bin/python3
"""For programs in a guest: hear that this machine is about to be captured, or has just become another one.

    import liveclone_app

    for event in liveclone_app.events("shop"):      # blocks; or liveclone_app.watch("shop", handle): in a thread
        if event.kind == "cloned":
            renew_what_must_not_be_shared()
        event.done()                                # or event.failed("why")

    prepare   a snapshot is about to be taken; failed() calls it off
    cloned    this is a clone: it gets no network until done(), and failed() ends it
    resumed   the source goes on, after the snapshot or without one

On a machine without liveclone nothing ever happens: it waits. One file, standard library, Python 3.8 and later; as a
program (`liveclone-app run NAME -- COMMAND`) it serves shell scripts.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SOCKET = "/run/liveclone/applications"
GENERATION = "/run/liveclone/generation"
_LOOK_AGAIN_S = 0.5  # while no agent listens; nothing in the standard library waits for a file


def generation(path: str = GENERATION) -> str:
    """Return the UUID of the machine's generation, "" when it has none: another one means another machine."""
    try:
        with open(path, encoding="utf-8") as file:
            return str(json.load(file)["uuid"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


# What the program has made since it was started may be of this generation; read before it makes anything.
_AT_START = generation()


class Refused(Exception):
    """The agent does not let this program subscribe: a bad name, or too many connections."""


class Event:
    """One event; answer it once, from any thread.

    Attributes:
        kind: "prepare", "cloned" or "resumed".
        generation: UUID of the machine as it is now; counter: how often it changed.
        hostname: a clone's new host name, else "".
        snapshot: id of the snapshot that is prepared, else "".
        deadline_s: how long the agent waits, about.
    """

    def __init__(self, message: dict[str, Any], connection: socket.socket | None) -> None:
        self.kind = str(message["event"])
        self.generation = str(message["generation"]["uuid"])
        self.counter = int(message["generation"]["counter"])
        self.hostname = str(message.get("hostname") or "")
        self.snapshot = str(message.get("snapshot") or "")
        self.deadline_s = float(message.get("deadline_s") or 0.0)
        self.answered = False
        self._id = message.get("id")
        self._connection = connection  # none: nobody waits for an answer

    def done(self) -> None:
        """Say that the program is ready."""
        self._say({"id": self._id, "ok": True})

    def failed(self, reason: str) -> None:
        """Say that it is not, and why; the host shows the reason."""
        self._say({"id": self._id, "error": str(reason) or "no reason given"})

    def _say(self, message: dict[str, Any]) -> None:
        if self.answered:
            return
        self.answered = True
        if self._connection is not None:
            try:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                pass  # the agent has ended: its host has no answer from it either


class Subscription:
    """A program's connection to the agent, made again whenever the agent was started again.

    A generation that passed while there was no connection is told as `cloned` when there is one.
    """

    def __init__(self, name: str, path: str = SOCKET) -> None:
        self._name = name
        self._path = path
        self._generation = _AT_START
        self._connection: socket.socket | None = None
        self._rest = b""
        self._missed: dict[str, Any] | None = None

    def connect(self) -> bool:
        """Subscribe; False when no agent listens.

        Raises:
            Refused: the agent does not want it.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._rest = b""
        try:
            connection.connect(self._path)
            connection.sendall(json.dumps({"subscribe": self._name}).encode() + b"\n")
            self._connection = connection
            welcome = self._read()
        except OSError:
            welcome = None
        if welcome is None or "error" in welcome:
            self.close()
            connection.close()
            if welcome is not None:
                raise Refused(welcome["error"])
            return False
        present = welcome["generation"]
        if present["uuid"] != self._generation:
            self._missed = {"event": "cloned", "generation": present}
        return True

    def wait(self) -> Event:
        """Return the next event, however long it takes."""
        while True:
            if self._connection is None and not self.connect():
                time.sleep(_LOOK_AGAIN_S)
                continue
            missed, self._missed = self._missed, None
            message = missed or self._read()
            if message is not None and "event" in message:
                event = Event(message, None if missed else self._connection)
                self._generation = event.generation
                return event

    def close(self) -> None:
        """Unsubscribe."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read(self) -> dict[str, Any] | None:
        """Return the next message; None, and no connection any more, when the agent has ended."""
        while b"\n" not in self._rest:
            try:
                data = self._connection.recv(65536) if self._connection else b""
            except OSError:
                data = b""
            if not data:
                self.close()
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def events(name: str, path: str = SOCKET) -> Iterator[Event]:
    """Yield each event, for ever. One that was not answered when the next is asked for counts as failed."""
    return _follow(Subscription(name, path))


def _follow(subscription: Subscription) -> Iterator[Event]:
    try:
        while True:
            event = subscription.wait()
            try:
                yield event
            finally:
                event.failed("the program did not say that it is done")  # no effect if it did
    finally:
        subscription.close()


def watch(name: str, handle: Callable[[Event], object], path: str = SOCKET) -> threading.Thread:
    """Call `handle` for each event, in a thread of its own, which is returned; its return means done.

    What it raises is told to the host, and printed. Where an agent runs, the program is subscribed when this returns.
    Threads do not survive fork(): call it in each process that has something of its own to renew.
    """
    subscription = Subscription(name, path)
    subscription.connect()

    def serve() -> None:
        for event in _follow(subscription):
            try:
                handle(event)
                event.done()
            except Exception as error:
                event.failed(f"{type(error).__name__}: {error}")
                sys.excepthook(*sys.exc_info())

    thread = threading.Thread(target=serve, name="liveclone", daemon=True)
    thread.start()
    return thread


def run(name: str, command: list[str], path: str = SOCKET) -> None:
    """Run a command for each event, for ever; its exit code 0 means done. It sees what hooks see."""
    for event in events(name, path):
        facts = {
            "LIVECLONE_EVENT": event.kind,
            "LIVECLONE_SNAPSHOT": event.snapshot,
            "LIVECLONE_GENERATION": event.generation,
            "LIVECLONE_COUNTER": str(event.counter),
            "LIVECLONE_HOSTNAME": event.hostname,
        }
        env = dict(os.environ, **{key: value for key, value in facts.items() if value})
        try:
            code = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, check=False).returncode
        except OSError as error:
            event.failed(str(error))
        else:
            if code:
                event.failed(f"{command[0]} ended with {code}")
            event.done()


USAGE = "usage: liveclone-app run NAME -- COMMAND [ARGUMENT]..."


def main(arguments: list[str]) -> int:
    """Be the command liveclone-app."""
    if arguments in (["-h"], ["--help"]):
        sys.stdout.write(USAGE + "\n")
        return 0
    if len(arguments) < 4 or arguments[0] != "run" or arguments[2] != "--":
        sys.stderr.write(USAGE + "\n")
        return 2
    try:
        run(arguments[1], arguments[3:])
    except Refused as error:
        sys.stderr.write(f"liveclone-app: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
