"""Work done in a process of its own that may be killed at any point: what a command of a user is to the product.

    test ── one JSON line a job ──> server (has imported everything once) ── fork ──> child: the job, then its end
         <── how it ended, result ──

Starting Python and importing the engine takes half a second, a fork two milliseconds: that is why a test can afford to
kill a command at every point there is. The variables LIVECLONE_FAULT and LIVECLONE_TRACE (liveclone/trace.py) hold for
one job.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

_PRELOAD = (
    "liveclone.drivers.fake.driver",
    "liveclone.drivers.qemu.driver",
    "liveclone.engine.clone",
    "liveclone.engine.run",
    "liveclone.engine.snapshot",
)


@dataclass(frozen=True)
class Ended:
    """How a job ended. `signal` is 0 unless it was killed; `error` holds the fields of the LivecloneError it raised."""

    signal: int
    result: Any
    error: dict[str, str]


class Children:
    """A server of jobs; use `open_children`."""

    def __init__(self, server: subprocess.Popen[bytes]) -> None:
        self._server = server

    def run(self, function: str, *args: Any, env: dict[str, str] | None = None) -> Ended:
        """Call `function` ("package.module:name") with JSON arguments in a child, and return how that ended.

        The child's environment is ours as it is now, and `env` above it.
        """
        assert self._server.stdin is not None and self._server.stdout is not None
        job = {"function": function, "args": args, "env": dict(os.environ) | (env or {})}
        self._server.stdin.write(json.dumps(job, default=str).encode() + b"\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        assert line, "the server of children has ended"
        return Ended(**json.loads(line))


@contextlib.contextmanager
def open_children() -> Iterator[Children]:
    """Start a server and end it afterwards."""
    # One thread: a server that forks must have no other.
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OPENBLAS_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", __name__]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT) as server:
        yield Children(server)
        assert server.stdin is not None
        server.stdin.close()


def run_at_once(program: str, arguments: Sequence[Sequence[str]]) -> list[str]:
    """Run one Python process for each list of arguments and return what they print.

    The program calls `begin()` when it has imported all it needs; none goes on before all of them have.
    """
    gate = 'import sys\ndef begin():\n    print("ready", flush=True)\n    sys.stdin.read()\n'
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    held, open_gate = os.pipe()
    with contextlib.ExitStack() as ending:
        started = []
        for words in arguments:
            argv = [sys.executable, "-c", gate + program, *words]
            child = subprocess.Popen(argv, stdin=held, stdout=subprocess.PIPE, text=True, env=env)
            started.append(ending.enter_context(child))
        os.close(held)
        outputs = []
        for child in started:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        os.close(open_gate)
        for child in started:
            assert child.stdout is not None
            outputs.append(child.stdout.read())
    return outputs


def serve() -> None:
    """Be the server, until standard input ends."""
    for module in _PRELOAD:
        importlib.import_module(module)
    for line in sys.stdin:
        job = json.loads(line)
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_fd)
            _work(job, write_fd)
        os.close(write_fd)
        with open(read_fd, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(pid, 0)
        signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        answer = {"signal": signal, "result": None, "error": {}} | (json.loads(told) if told else {})
        if not told and not signal:
            answer["error"] = {
                "error": "job-crashed",
                "message": f"exit status {status >> 8}, see standard error",
            }
        print(json.dumps(answer), flush=True)


def _work(job: dict[str, Any], write_fd: int) -> None:
    from liveclone import trace
    from liveclone.errors import LivecloneError

    code = 1
    try:
        os.dup2(2, 1)  # standard output belongs to the server
        os.environ.clear()
        os.environ.update(job["env"])
        importlib.reload(trace)
        module, _, name = job["function"].partition(":")
        try:
            told = {"result": getattr(importlib.import_module(module), name)(*job["args"])}
        except LivecloneError as error:
            told = {"error": error.fields()}
        os.write(write_fd, json.dumps(told, default=str).encode())
        code = 0
    finally:
        if code:
            sys.excepthook(*sys.exc_info())
        os._exit(code)


if __name__ == "__main__":
    serve()
