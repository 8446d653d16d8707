"""What holds for all tests.

    tests/unit      milliseconds; nothing but our own code
    tests/contract  one kit over every implementation
    tests/host      processes, sockets, memory, files; no guest
    tests/vm        real guests
    tests/fault     kill at named points

The folder is the tier, in this order. `--fast` leaves out what starts a guest: `vm`, `fault` (unless marked `light`)
and whatever is marked `machine`. A tool that is missing skips a test at home and fails it where CI=true.

State of a run is in two folders that carry its name and are removed with it: LIVECLONE_HOME is in the one on a disk
(with `--fast` on tmpfs too), LIVECLONE_HOT in the one on tmpfs. When all is over nothing that knows these folders may
be left; `nothing_left_behind` looks. Each of several processes (xdist) has folders of its own in those of the run, and
does not share a home, an address or a name with another one; tests/spread.py says which process runs what.
What a test measures of the whole host it measures alone: while a test marked `alone` runs, no other machine test does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.libvirtd import Libvirtd

ROOT = Path(__file__).resolve().parent.parent
DEV = ROOT / ".dev"

# Seconds for one test with its fixtures, per tier, in their order. Guests run under emulation on a slow machine.
TIERS = {"unit": 30, "contract": 120, "host": 120, "vm": 600, "fault": 600}

PREFIX = "liveclone-test-"

# Much more than what the tests of `--fast` have in files at any time.
SMALL_BYTES = 2 << 30
_RUN, _HOT = pytest.StashKey[Path](), pytest.StashKey[Path]()

hypothesis.settings.register_profile("liveclone", deadline=None, print_blob=True)
hypothesis.settings.load_profile("liveclone")


class Needs(Protocol):
    def __call__(self, *tools: str, root: bool = False) -> None: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests that start no guest")


@pytest.hookimpl(tryfirst=True)  # before pytest decides where tmp_path is
def pytest_configure(config: pytest.Config) -> None:
    for tier in TIERS:
        config.addinivalue_line("markers", f"{tier}: in tests/{tier}")
    config.addinivalue_line("markers", "machine: starts a real guest; left out by --fast")
    config.addinivalue_line("markers", "light: of the tier fault, and starts no guest")
    config.addinivalue_line("markers", "needs_method(method): of a hypervisor that captures so")
    config.addinivalue_line("markers", "needs_ports: of a hypervisor that publishes ports")
    config.addinivalue_line("markers", "alone: no other machine test may run at the same time")

    run, hot = _make_folders(getattr(config, "workerinput", None), small=config.getoption("--fast"))
    config.stash[_RUN], config.stash[_HOT] = run, hot
    os.environ["LIVECLONE_HOME"] = str(run / "home")
    os.environ["LIVECLONE_HOT"] = str(hot / "home")
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(DEV / "cache" / "hypothesis")
    if hasattr(config, "workerinput"):
        config.option.basetemp = str(run / "tmp")
    else:
        config.option.basetemp = config.option.basetemp or str(run / "tmp")
        shutil.rmtree(DEV / "log" / "failed", ignore_errors=True)
    # To be terminated is to be interrupted: fixtures are torn down. And a shell lets what it runs in the background
    # ignore Ctrl-C, which tests of it would inherit.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


def _make_folders(worker: dict[str, Any] | None, *, small: bool) -> tuple[Path, Path]:
    """Make the two folders of this run, or of this one of its processes. `small`: it needs little room."""
    if worker is not None:
        run, hot = (Path(folder, worker["workerid"]) for folder in worker["folders"])
        run.mkdir()
        hot.mkdir()
        return run, hot
    # Not in the checkout: its path may be too long for a Unix socket. Not in /tmp, which is memory on Debian 13.
    large = "/var/tmp" if os.access("/var/tmp", os.W_OK) else None
    shared_memory = os.access("/dev/shm", os.W_OK)
    if small and shared_memory and shutil.disk_usage("/dev/shm").free >= SMALL_BYTES:
        # A sixth of all processor time goes into making and removing small files on ext4. The whole suite does that.
        large = "/dev/shm"
    run = Path(tempfile.mkdtemp(prefix=PREFIX, dir=large))
    if shared_memory:
        return run, Path(tempfile.mkdtemp(prefix=PREFIX, dir="/dev/shm"))
    (run / "hot").mkdir()
    return run, run / "hot"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process that is about to start (xdist) which folders the run has."""
    node.workerinput["folders"] = [str(node.config.stash[folder]) for folder in (_RUN, _HOT)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.spread import Spread

    return Spread(config, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    run, hot = config.stash.get(_RUN, None), config.stash.get(_HOT, None)
    if run is None or hot is None:
        return
    for pid in _find_processes(run, hot):
        _end(pid)
    for folder in (run, hot):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = list(TIERS)
    for item in items:
        tier = _tier(item)
        item.add_marker(tier)
        if item.get_closest_marker("timeout") is None:
            # The first test that wants a guest waits until one of the processes has built the image.
            is_machine = item.get_closest_marker("machine") is not None
            item.add_marker(pytest.mark.timeout(max(TIERS[tier], TIERS["vm"]) if is_machine else TIERS[tier]))
        if tier == "vm" or (tier == "fault" and item.get_closest_marker("light") is None):
            item.add_marker("machine")
    items.sort(key=lambda item: order.index(_tier(item)))
    if config.getoption("--fast"):
        left_out = [item for item in items if item.get_closest_marker("machine") is not None]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.get_closest_marker("machine") is None]


def _tier(item: pytest.Item) -> str:
    tier = item.path.relative_to(ROOT / "tests").parts[0]
    if tier not in TIERS:
        raise pytest.UsageError(f"{item.path} is in none of the tiers {', '.join(TIERS)}")
    return tier


@pytest.hookimpl(wrapper=True, tryfirst=True)  # waiting is not counted as the test's time
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a machine test begin when no other process of the run (xdist) has one that must be alone, and hold off such."""
    worker = getattr(item.config, "workerinput", None)
    if worker is None or item.get_closest_marker("machine") is None:
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    folder = worker["folders"][0]
    with open(f"{folder}/turn.lock", "a") as turn, open(f"{folder}/machines.lock", "a") as machines:
        # Whoever waits to be alone has the turn, so that nobody begins before it.
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(machines, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the logs of what failed (console, QMP, QEMU) in .dev/log/failed: the folders of the run will go."""
    report = yield
    if report.failed:
        places = [item.config.stash[_RUN] / "home", getattr(item, "funcargs", {}).get("tmp_path")]
        kept = DEV / "log" / "failed" / re.sub(r"[^\w.-]+", "_", item.nodeid)[-120:]
        logs = [(place, log) for place in places if place for log in sorted(place.rglob("*.log"))]
        for place, log in logs:
            target = kept / log.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(
                OSError
            ):  # a log that goes away meanwhile, a full disk: the test's story comes first
                shutil.copyfile(log, target)
        if logs:
            report.sections.append(("logs kept", str(kept)))
    return report


@pytest.fixture(scope="session")
def needs() -> Needs:
    """Return what a test calls first: `needs("qemu-img", root=True)`."""

    def check(*tools: str, root: bool = False) -> None:
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
        missing = [tool for tool in tools if shutil.which(tool, path=path) is None]
        if root and os.geteuid() != 0:
            missing.append("root")
        if missing and os.environ.get("CI", "").lower() in ("true", "1", "yes"):
            pytest.fail(f"missing here, and CI demands them: {', '.join(missing)}", pytrace=False)
        if missing:
            pytest.skip(f"missing here: {', '.join(missing)}")

    return check


@pytest.fixture(scope="session")
def cache_folder() -> Path:
    """Return a folder that outlives the run: for guest images, which take half a minute to build."""
    folder = Path(os.environ.get("LIVECLONE_DEV_CACHE") or DEV / "cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(pytestconfig: pytest.Config) -> Iterator[None]:
    """Fail the run if processes, network namespaces or memory images of it are left when all else is torn down."""
    run, hot = pytestconfig.stash[_RUN], pytestconfig.stash[_HOT]
    yield
    left = [
        f"process {pid}: {words}" for pid, words in _find_processes(run, hot).items() if not _ends_soon(pid)
    ]
    left += [f"network namespace {name}" for name in sorted(_find_namespaces(run))]
    left += [f"memory image {file}" for file in sorted(hot.rglob("*")) if not file.is_dir()]
    if left:
        pytest.fail("left behind by this run:\n  " + "\n  ".join(left), pytrace=False)


def _find_processes(run: Path, hot: Path) -> dict[int, str]:
    """Return the processes, but this one, whose arguments or environment name something in a folder of the run."""
    marks = [os.fsencode(folder) + b"/" for folder in (run, hot)]
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has just ended, or it is another user's
            words = (entry / "cmdline").read_bytes()
            text = words + (entry / "environ").read_bytes()
            if any(mark in text for mark in marks):
                found[int(entry.name)] = words.replace(b"\0", b" ").decode(errors="replace")[:200]
    return found


def _ends_soon(pid: int) -> bool:
    """Wait two seconds for a process that was told to end and is not gone yet."""
    return _with_pidfd(pid, lambda fd: bool(select.select([fd], [], [], 2.0)[0]))


def _end(pid: int) -> None:
    def kill(fd: int) -> bool:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        return bool(select.select([fd], [], [], 5.0)[0])

    _with_pidfd(pid, kill)


def _with_pidfd(pid: int, action: Callable[[int], Any]) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        return bool(action(fd))
    except ProcessLookupError:
        return True
    finally:
        os.close(fd)


def note_namespace(name: str) -> None:
    """Say that a test is going to have machines in this network namespace. Nothing in a name tells whose it is."""
    with Path(os.environ["LIVECLONE_HOME"]).with_name("namespaces").open("a") as notes:
        notes.write(f"{name}\n")


def _find_namespaces(run: Path) -> set[str]:
    """Return the network namespaces that are there of those that were noted."""
    with contextlib.suppress(FileNotFoundError):
        return {
            name for name in (run / "namespaces").read_text().split() if Path("/run/netns", name).exists()
        }
    return set()


@pytest.fixture(scope="session")
def libvirtd(needs: Needs, cache_folder: Path, pytestconfig: pytest.Config) -> Iterator[Libvirtd]:
    """Return a libvirtd of this run's own; from now on all of its paths are those of this process."""
    from liveclone.drivers.libvirt import hook_install
    from tests.libvirtd import Libvirtd

    needs("libvirtd", "virsh", "qemu-system-x86_64", root=True)
    run, hot = pytestconfig.stash[_RUN], pytestconfig.stash[_HOT]
    hooks = run / "libvirt" / "etc" / "hooks"
    hooks.mkdir(parents=True)
    hook_install.install(hooks, images=[hot])
    with Libvirtd(run / "libvirt", hot=hot / "libvirt", cache=cache_folder / "libvirt") as daemon:
        yield daemon


@pytest.fixture
def libvirt_connection(libvirtd: Libvirtd) -> Iterator[Any]:
    """Return a connection to it (virConnect)."""
    libvirt = pytest.importorskip("libvirt")
    connection = libvirt.open(libvirtd.uri)
    yield connection
    connection.close()
