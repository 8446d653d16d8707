"""A libvirtd of a test's own, which sees no other one's domains and leaves nothing behind.

    folder/ etc ──> /etc/libvirt        qemu.conf, hooks/
            run ──> /run/libvirt        libvirt-sock, sockets of channels, pid files
            lib ──> /var/lib/libvirt    saved domains; what is in memory_backing_dir unless `hot` is given
            log ──> /var/log/libvirt    libvirtd.log, qemu/NAME.log
            cache > /var/cache/libvirt  what QEMU can do: eight seconds to find out, so it may be another folder, kept

libvirt's paths are compiled into it, so they are mounted, in a mount namespace of its own. The thread that calls `start`
enters it, and whatever that thread starts comes along (threads, processes): all see /etc/libvirt and /run/libvirt as
libvirtd does, so what libvirtd says (the socket of a channel) is where it says, and the driver under test is told
nothing. `stop` goes back. Threads that were there before `start`, and everybody else, see the host's own libvirt.

Its domains' networks are in a network namespace without a name, or in the one given: bridges and dnsmasq of
`virsh net-start` go with the last process. A UTS namespace is only the mark by which `stop` finds what libvirtd has
started, and what others have started `inside`. No systemd, machined, cgroups, AppArmor or other daemon is needed; root is.

By hand, in a shell in which `virsh` means this libvirtd:  python -m tests.libvirtd [--user-of-its-own] [COMMAND ...]
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent

_TREES = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
_KVM = "/dev/kvm"
_PID_FILE = "/run/libvirt/libvirtd.pid"
_SOCKET = "libvirt-sock"
_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_OWNER = "LIVECLONE_LIBVIRTD"  # in its environment, for `end_leftovers`
_PATIENCE_S = 30.0

# mount(2), umount2(2), unshare(2)
_BIND, _REC, _SLAVE, _DETACH = 0x1000, 0x4000, 1 << 19, 2
_NEW_MOUNTS, _OWN_FS = 0x20000, 0x200
_NEW_NETWORK = 0x40000000

# Everything is root's, as the files of a test are.
_ROOTS = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
"""
# namespaces, cgroups and confinement are what a container does not have.
_QEMU_CONF = """\
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
_LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""


class Libvirtd:
    """A private libvirtd; see the module. Use it as a context manager, or `stop` it.

    Attributes:
        uri: how to connect, from inside and from outside.
        hooks: libvirtd's folder for hooks, from inside and from outside. It looks for them when it starts, and on SIGHUP.
        memory: the folder in which libvirtd makes one for the RAM files of each domain.
    """

    def __init__(
        self,
        folder: Path,
        *,
        hot: Path | None = None,
        cache: Path | None = None,
        namespace: str = "",
        user_of_its_own: bool = False,
        host: str = "",
    ) -> None:
        """Plan one.

        Args:
            folder: of its own, made by `start` and removed by `stop`. A hook may be there already, in etc/hooks/qemu.d.
            hot: the same, on tmpfs, for memory_backing_dir.
            cache: outlives it, and may be shared by several.
            namespace: name of the network namespace for its domains, or a path such as /proc/PID/ns/net; it outlives it too.
            user_of_its_own: QEMU runs as the user that the distribution has for it, and files change owner, as on any
                host that nobody has configured. Domains' disks are to be in /var/lib/libvirt/images then.
            host: the name of the host that it believes to be on, for domains that migrate from one libvirtd to another.
        """
        self.folder = folder
        self.uri = f"qemu:///system?socket={folder}/run/{_SOCKET}"
        self.hooks = folder / "etc" / "hooks"
        # libvirtd adds two names to what its configuration says, and none to its default.
        self.memory = hot / "libvirt" / "qemu" if hot else folder / "lib" / "qemu" / "ram"
        self._hot, self._cache, self._network = hot, cache or folder / "cache", namespace
        self._user_of_its_own, self._host = user_of_its_own, host
        self._namespaces: dict[str, int] = {}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Libvirtd:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Return the process id of libvirtd itself."""
        return int((self.folder / "run" / Path(_PID_FILE).name).read_text())

    @property
    def inside(self) -> list[str]:
        """Return what is to stand before a command: it runs in the network of the domains then, and `stop` ends it."""
        fds = Path(f"/proc/{os.getpid()}/fd")
        return ["nsenter", *(f"--{name}={fds / str(fd)}" for name, fd in self._namespaces.items())]

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Be in the network of the domains: the calling thread, and what it starts meanwhile. `stop` does not end those."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", self._namespaces["net"], _NEW_NETWORK)
            try:
                yield
            finally:
                _call("setns", home, _NEW_NETWORK)
        finally:
            os.close(home)

    def start(self) -> None:
        """Make the folders, enter the namespace and start; return when libvirtd accepts connections."""
        with contextlib.ExitStack() as undo:
            undo.callback(self._remove_folders)
            self._make_folders()
            undo.enter_context(_Mounts({self._tree(name): path for name, path in _TREES.items()}))
            if self._user_of_its_own and Path(_KVM).exists():
                self._open_kvm()
            undo.callback(self._end_processes)
            self._launch()
            self._undo = undo.pop_all()

    def stop(self) -> None:
        """End libvirtd and all that it has started, leave the namespace and remove the folders."""
        self._undo.close()

    def kill(self) -> None:
        """End libvirtd as the kernel's out-of-memory killer would; its domains run on."""
        _kill(self.pid)

    def restart(self) -> None:
        """Kill libvirtd, if it is there, and start it on what it has left; its domains run on."""
        if self.pid in self._find_processes():
            self.kill()
        self._launch()

    def _tree(self, name: str) -> Path:
        return self._cache if name == "cache" else self.folder / name

    def _make_folders(self) -> None:
        socket = self.uri.partition("=")[2]
        assert len(os.fsencode(socket)) < 108, f"too long for a Unix socket: {socket}"
        for folder in (*map(self._tree, _TREES), self.hooks):
            folder.mkdir(parents=True, exist_ok=True)
        config = _QEMU_CONF + ("" if self._user_of_its_own else _ROOTS)
        images = self.folder / "lib" / "images"
        images.mkdir(exist_ok=True)
        images.chmod(0o711)  # as the distribution's
        if self._hot:
            self._hot.mkdir()
            config += f'memory_backing_dir = "{self._hot}"\n'
        (self.folder / "etc" / "qemu.conf").write_text(config)
        uuid = f'host_uuid = "{uuids.uuid4()}"\n' if self._host else ""
        (self.folder / "etc" / "libvirtd.conf").write_text(_LIBVIRTD_CONF + uuid)

    def _open_kvm(self) -> None:
        """Let QEMU's user open /dev/kvm as a distribution does, in here: libvirt asks QEMU anew what it can do for each call
        as long as root can open it and QEMU cannot, and that takes eight seconds."""
        node, seen = self.folder / "run" / "kvm", Path(_KVM).stat()
        os.mknod(node, seen.st_mode, seen.st_rdev)
        node.chmod(0o666)
        _call("mount", os.fsencode(node), _KVM.encode(), None, _BIND, None)

    def _remove_folders(self) -> None:
        for folder in (self.folder, self._hot):
            if folder and folder.exists():
                shutil.rmtree(folder)

    def _launch(self) -> None:
        """Start libvirtd; as a daemon, since only so it tells when its sockets listen: its first process ends."""
        if self._namespaces:
            inside = self.inside
        elif self._network:
            inside = ["nsenter", f"--net={Path('/run/netns') / self._network}", "unshare", "--uts"]
        else:
            inside = ["unshare", "--net", "--uts"]
        if self._host and not self._namespaces:
            inside += ["sh", "-c", 'hostname "$0" && exec "$@"', self._host]
        done = subprocess.run(
            [*inside, "libvirtd", "--daemon", "--pid-file", _PID_FILE],
            env=os.environ
            | {"PATH": f"{os.environ.get('PATH', os.defpath)}:{_PATH}", _OWNER: f"{self.folder}/"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        if done.returncode != 0:
            log = self.folder / "log" / "libvirtd.log"
            told = log.read_text() if log.exists() else ""
            raise AssertionError(f"libvirtd does not start ({done.returncode}): {done.stderr}{told}")
        for name in ("net", "uts") if not self._namespaces else ():
            # Held, for `restart`: the network goes with its last process, and that may be libvirtd.
            self._namespaces[name] = os.open(f"/proc/{self.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)

    def _end_processes(self) -> None:
        """End libvirtd, then its domains; again, as one may have been on its way."""
        while found := self._find_processes():
            for pid in sorted(found, key=lambda pid: found[pid] != "libvirtd"):
                _kill(pid)
        while self._namespaces:
            os.close(self._namespaces.popitem()[1])

    def _find_processes(self) -> dict[int, str]:
        """Return libvirtd and all that it has started, with their names."""
        return _find_marked([os.fstat(self._namespaces["uts"])]) if self._namespaces else {}


def end_leftovers(folder: Path) -> None:
    """End what is left inside a libvirtd with that folder, or one below it, whose owner was killed; the folder stays.

    A process that names the folder tells which UTS namespace it was; domains need not name it.
    """
    words, own, marks = os.fsencode(folder) + b"/", Path("/proc/self/ns/uts").stat(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            mark = (entry / "ns" / "uts").stat()
            named = words in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if named and not os.path.samestat(mark, own):
                marks.append(mark)
    while found := _find_marked(marks):
        for pid in found:
            _kill(pid)


def _find_marked(marks: list[os.stat_result]) -> dict[int, str]:
    """Return the processes that are in one of these UTS namespaces, with their names."""
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            seen = (entry / "ns" / "uts").stat()
            if any(os.path.samestat(seen, mark) for mark in marks):
                found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


class _Mounts:
    """A mount namespace for the calling thread, in which folders stand where others do outside."""

    def __init__(self, mounts: dict[Path, str]) -> None:
        self._mounts = mounts

    def __enter__(self) -> None:
        for path in self._mounts.values():
            # Of these only /run/libvirt may be missing, before the first libvirtd of this boot; it stays, empty.
            Path(path).mkdir(parents=True, exist_ok=True)
        self._home, self._folder = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), Path.cwd()
        _call("unshare", _NEW_MOUNTS)
        # What is mounted outside later comes in, nothing goes out.
        _call("mount", None, b"/", None, _REC | _SLAVE, None)
        for source, target in self._mounts.items():
            _call("mount", os.fsencode(source), os.fsencode(target), None, _BIND, None)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for target in reversed(self._mounts.values()):
            _call(
                "umount2", os.fsencode(target), _DETACH
            )  # a thread that was started inside keeps the namespace
        # Only a thread that shares its working folder with no other one can change the namespace.
        _call("unshare", _OWN_FS)
        _call("setns", self._home, _NEW_MOUNTS)
        os.close(self._home)
        os.chdir(self._folder)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


_libc = ctypes.CDLL(None, use_errno=True)


def _kill(pid: int) -> None:
    """End a process and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            assert select.select([fd], [], [], _PATIENCE_S)[0], f"process {pid} does not end"
        finally:
            os.close(fd)


def main(command: list[str]) -> int:
    """Run a command, a shell by default, beside a private libvirtd."""
    own = command[:1] == ["--user-of-its-own"]
    command = command[own:]
    cache = Path(os.environ.get("LIVECLONE_DEV_CACHE", ROOT / ".dev" / "cache"))
    with Libvirtd(
        Path(tempfile.mkdtemp(prefix="libvirtd-", dir="/var/tmp")),
        cache=cache / "libvirt",
        user_of_its_own=own,
    ) as libvirtd:
        environment = os.environ | {"LIBVIRT_DEFAULT_URI": libvirtd.uri}
        return subprocess.run(
            command or [os.environ.get("SHELL", "/bin/sh")], env=environment, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
