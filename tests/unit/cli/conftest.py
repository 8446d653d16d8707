"""Homes in which the command runs on the fake hypervisor."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from liveclone.cli.main import build_app
from liveclone.model.base import encode, now
from liveclone.model.image import Image
from liveclone.model.machine import Boot
from liveclone.units import MIB

from .commands import Command, stop_server
from .terminal import COMMAND as COMMAND
from .terminal import Terminal, close_all

SOURCE = Path(__file__).resolve().parents[3] / "src"
PATIENCE_S = 60.0

Ended = subprocess.CompletedProcess[bytes]
Started = Command | subprocess.Popen[bytes]
STARTED: list[Started] = []


@functools.cache
def build_command() -> Any:
    """Return the command with all its verbs. To read their signatures takes longer than what most of them do."""
    return typer.main.get_command(build_app())


def invoke(
    words: Sequence[str], given: bytes | None = None, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run the command in this process."""
    with CliRunner().isolation(given, environment) as (out, err, _):
        code: Any = 0
        try:
            build_command().main(list(words), prog_name="liveclone")
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        assert isinstance(code, int)
        return Ended(words, code, out.getvalue(), err.getvalue())


class Home:
    """A home with an image called `image`. `remove_all` ends it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hot = Path(os.environ["LIVECLONE_HOT"]).with_name(f"cli-{secrets.token_hex(4)}")
        self.environment = os.environ | {
            "PYTHONPATH": str(SOURCE),
            "LIVECLONE_HOME": str(folder),
            "LIVECLONE_HOT": str(self.hot),
            "LIVECLONE_DRIVER": "fake",
            "LIVECLONE_NETWORK": "user",
            "TERM": "dumb",
        }
        self.add_image("image")

    def add_image(self, name: str) -> None:
        place = self.folder / "images" / name
        place.mkdir(parents=True)
        disk = place / "disk.qcow2"
        disk.touch()
        image = Image(
            name=name, created_at=now(), disk=str(disk), disk_bytes=1024 * MIB, boot=Boot(), has_agent=True
        )
        (place / "manifest.json").write_bytes(encode(image))

    def call(self, *words: str, given: bytes | None = None, **environment: str) -> Ended:
        """Run the command to its end, whatever that is; in this process, which spares the start of another."""
        return invoke(words, given, self.environment | environment)

    def spawn(
        self, *words: str, given: bytes | None = None, fresh: bool = False, **environment: str
    ) -> Ended:
        """As `call`, in a process of its own: it may be killed, and its streams are real ones.

        `fresh`: from the start of Python on, not as commands.py does it.
        """
        environment = self.environment | environment
        if fresh:
            return subprocess.run(
                [*COMMAND, *words],
                env=environment,
                input=given,
                stdin=subprocess.DEVNULL if given is None else None,
                capture_output=True,
                timeout=PATIENCE_S,
                check=False,
            )
        stdin = subprocess.DEVNULL if given is None else subprocess.PIPE
        command = Command(environment, words, stdin=stdin)
        STARTED.append(command)
        out, err = command.communicate(given)
        return Ended(words, command.wait(), out, err)

    def run(self, *words: str, given: bytes | None = None, **environment: str) -> str:
        """Run the command, which must succeed, and return what it printed."""
        ended = self.call(*words, given=given, **environment)
        assert ended.returncode == 0, (words, ended)
        return ended.stdout.decode()

    def json(self, *words: str) -> Any:
        """Run the command with --json; nothing but one value may be on its output."""
        return json.loads(self.run(*words, "--json"))

    def fail(self, code: int, *words: str) -> dict[str, Any]:
        """Run the command with --json; it must end with this code and say why in one JSON line."""
        ended = self.call(*words, "--json")
        assert ended.returncode == code, (words, ended)
        assert ended.stdout == b"", "a result beside an error"
        fields: dict[str, Any] = json.loads(ended.stderr.splitlines()[-1])
        assert {"error", "kind", "message"} <= fields.keys()
        return fields

    def start(
        self,
        *words: str,
        stdin: Any = subprocess.PIPE,
        stdout: Any = subprocess.PIPE,
        fresh: bool = False,
    ) -> Started:
        """Start the command and leave it running; it ends with the test."""
        started: Started
        if fresh:
            started = subprocess.Popen(
                [*COMMAND, *words],
                env=self.environment,
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                bufsize=0,  # what a test has not read yet is in the pipe, for `communicate`
            )
        else:
            started = Command(self.environment, words, stdin=stdin, stdout=stdout)
        STARTED.append(started)
        return started

    def terminal(self, *words: str, fresh: bool = False) -> Terminal:
        """Start the command on a terminal of its own."""
        return Terminal(self.environment, *words, fresh=fresh)

    def machine(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.json("show", name)
        return found

    def remove_all(self) -> None:
        names = [machine["name"] for machine in self.json("list")]
        if names:
            self.run("remove", "--force", *names)
        snapshots = [snapshot["name"] for snapshot in self.json("snapshot", "list")]
        for name in snapshots:
            self.run("snapshot", "seal", name)  # whoever seals is done, and no process is left
            self.run("snapshot", "remove", name)
        left = [path for part in ("machines", "snapshots") for path in (self.folder / part).iterdir()]
        assert left + list(self.hot.iterdir()) == []

    def close(self) -> None:
        """End what a failed test has left."""
        mark = os.fsencode(self.folder)
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if mark in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
        shutil.rmtree(self.hot, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _end_the_server() -> Iterator[None]:
    yield
    stop_server()


@pytest.fixture(autouse=True)
def _end_what_was_started() -> Iterator[None]:
    yield
    close_all()
    while STARTED:
        child = STARTED.pop()
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """An empty home, of this test alone."""
    home = Home(tmp_path / "home")
    try:
        yield home
    finally:
        home.close()


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with a running machine `web`, its snapshot `warm` and its clone `twin`, for the tests of one file."""
    home = Home(tmp_path_factory.mktemp("town") / "home")
    try:
        home.run("run", "image", "--name", "web", "--ram", "128M", "--label", "tier=front")
        home.run("snapshot", "web", "--name", "warm")
        home.run("clone", "warm", "--name", "twin", "--overcommit")
        yield home
        home.remove_all()
    finally:
        home.close()
