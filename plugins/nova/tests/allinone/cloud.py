"""A cloud: a database, a queue and a cache, then five services of OpenStack, and a host with guests.

    libvirtd, mariadbd, rabbitmq-server, memcached                     at once
    keystone ─ glance ─ placement ─ neutron ─ nova                     at once, each: database, then service
    nova-compute                                                       when keystone knows the services

Every API listens from the start on a port that was free, so nothing waits for it in a loop: who asks too early waits in
the queue of its socket. When it stops nothing is left: every process is known by a namespace, taps go with the network, and
all files are in one folder. If its own process is killed, the next cloud ends what that one has left, and removes it.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any

import openstack

from liveclone.drivers.libvirt import hook_install

from . import configs, programs
from .borrowed import libvirtd as private

PARENT = Path("/var/tmp")  # not /tmp, which is memory on Debian 13
PREFIX = "liveclone-cloud-"
HOST, SECOND_HOST = "host-1", "host-2"
USERS = ("demo", "other")
HERE = Path(__file__).parent
RABBITMQ = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server"  # the one on PATH is a wrapper that changes to its own user
)
NEEDED = ("libvirtd", "qemu-system-x86_64", "qemu-img", "mariadbd", RABBITMQ, "memcached", "mmdebstrap", "ip")
SMALL_DATABASE = (
    *("--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"),
    *("--innodb-buffer-pool-size=64M", "--performance-schema=OFF", "--max-connections=500"),
)
SMALL_ERLANG = "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
MICROVERSION = "2.96"
PATIENCE_S = 120.0


class Cloud:
    """A running one; see the module. Use it as a context manager.

    Attributes:
        took: seconds that each part took to start, and all of it.
    """

    def __init__(self, cache: Path) -> None:
        """Plan one.

        Args:
            cache: a folder that outlives it, for what libvirt finds out about QEMU.
        """
        self._cache = cache
        self._undo = contextlib.ExitStack()
        self._compute: subprocess.Popen[bytes] | None = None
        self._registered = threading.Event()
        self.took: dict[str, float] = {}

    def __enter__(self) -> Cloud:
        with contextlib.ExitStack() as undo:
            self._start(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    # ------------------------------------------------------------------ for tests

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Be in its network: nobody else can talk to it."""
        with self.libvirtd.network():
            yield

    def connect(self, user: str = "demo") -> Any:
        """Return a connection of the SDK: one of USERS, or `admin`, in a project of the same name."""
        return openstack.connect(
            load_yaml_config=False,
            load_envvars=False,
            auth=self._login(user),
            region_name=configs.REGION,
            compute_default_microversion=MICROVERSION,
        )

    def command(self, *words: str, user: str = "demo") -> subprocess.CompletedProcess[str]:
        """Run `openstack` with these words."""
        login = {f"OS_{key.upper()}": value for key, value in self._login(user).items()}
        extra = {"OS_REGION_NAME": configs.REGION, "OS_IDENTITY_API_VERSION": "3", "HOME": str(self.folder)}
        return subprocess.run(
            [str(Path(sys.executable).with_name("openstack")), *words],
            env=os.environ | login | extra,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def start_compute(self, driver: str) -> None:
        """Start nova-compute with that virt driver, instead of the one that runs; guests run on. Wait until it serves.

        A server that is scheduled while it starts would become an error: it takes it for one that it left half-made.
        """
        if self._compute is not None:
            self._programs.kill(self._compute)
        self._compute = self._run_compute(self._programs, self.places, HOST, driver)

    @contextlib.contextmanager
    def second_host(self) -> Iterator[None]:
        """Have another host, until no server is left on it: a libvirtd, a nova-compute, a folder, in the same network."""
        folder = self.folder / f"libvirt-{SECOND_HOST}"
        network = f"/proc/{self.libvirtd.pid}/ns/net"
        cache = self._cache / "libvirt"
        daemon = private.Libvirtd(folder, cache=cache, namespace=network, host=SECOND_HOST)
        self._install_hook(daemon, SECOND_HOST)
        host = programs.Programs(daemon, self.folder)
        places = dataclasses.replace(self.places, libvirt=daemon.uri)
        admin = self.connect("admin").compute
        with contextlib.ExitStack() as undo:
            # What libvirt's own paths are is a thread's own matter, and that of what it starts.
            thread = undo.enter_context(futures.ThreadPoolExecutor(1))

            def do(work: Callable[..., Any], *words: Any) -> Any:
                return thread.submit(work, *words).result()

            undo.callback(host.reap)
            do(daemon.start)
            undo.callback(do, daemon.stop)
            self._uris.append(daemon.uri)
            undo.callback(self._uris.remove, daemon.uri)
            do(self._run_compute, host, places, SECOND_HOST, configs.OUR_DRIVER)
            wait_until(lambda: self._find_hosts(admin) == ["up", "up"], "no second host")
            yield
            do(daemon.stop)  # or it would report again
            (service,) = admin.services(host=SECOND_HOST)
            admin.delete_service(service)

    def start_second_api(self, router: str, policy: Mapping[str, str] | None = None) -> str:
        """Start another nova-api, with that line in its api-paste.ini and those rules; return its address."""
        with self._listen() as listener:
            port = int(listener.getsockname()[1])
            self._serve_nova(f"nova-api-{port}", router, listener, policy or {})
        return f"http://127.0.0.1:{port}{configs.APIS['nova'][1]}"

    def list_domains(self) -> list[str]:
        return [
            name
            for uri in self._uris
            for name in self._ask("virsh", "-c", uri, "list", "--all", "--name").split()
        ]

    def list_taps(self) -> list[str]:
        lines = self._ask("ip", "-o", "link", "show", "type", "tun").splitlines()
        return [line.split(": ")[1] for line in lines]

    def list_instance_folders(self) -> list[str]:
        """Return the folders of nova-compute's instances; those of the whole host have other names."""
        return [path.name for path in self.folder.glob("host-*/instances/*-*-*-*-*")]

    def why_memory_is_not_shared(self, server: Any) -> str | None:
        """Return why a server from a live snapshot does not share its memory with others, or None."""
        (known,) = self.folder.glob(f"host-*/instances/{server.id}/domain.json")
        why: str | None = json.loads(known.read_text())["why_full"] or None
        return why

    def list_leftovers(self) -> list[str]:
        """Return what the plugin has on hosts of captures, of states of live snapshots, and of disks beside their own."""
        names = ("liveclone/captures/*", "liveclone/states/*/*", "*/disk.*qcow2")
        found = [path for name in names for path in self.folder.glob(f"host-*/instances/{name}")]
        return sorted(str(path.relative_to(self.folder)) for path in found)

    # ------------------------------------------------------------------ start

    def _start(self, undo: contextlib.ExitStack) -> None:
        begin = time.monotonic()
        remove_leftovers()
        self.folder = make_folder(undo)
        self.libvirtd = private.Libvirtd(self.folder / "libvirt", cache=self._cache / "libvirt")
        self._programs = programs.Programs(self.libvirtd, self.folder)
        undo.callback(self._keep_logs)
        undo.callback(self._programs.reap)
        self._install_hook(self.libvirtd, HOST)
        self._uris = [self.libvirtd.uri]
        with self._timed("libvirtd"):
            undo.enter_context(self.libvirtd)
        # What libvirt finds out about QEMU, for eight seconds if it never did, nova-compute will ask for.
        self._programs.start("virsh", "virsh", "-c", self.libvirtd.uri, "capabilities")
        with contextlib.ExitStack() as network:
            network.enter_context(self.inside())
            self._programs.run("lo", "ip", "link", "set", "lo", "up")
            # It shows the devices of the network it is mounted from, and nova-compute removes a tap only if it is there.
            self._programs.run("sysfs", "mount", "-t", "sysfs", "sysfs", "/sys")
            self._listeners = {name: network.enter_context(self._listen()) for name in configs.APIS}
            ports = {name: int(listener.getsockname()[1]) for name, listener in self._listeners.items()}
            ports |= {name: self._find_port() for name in ("rabbitmq", "memcached")}
            self.places = configs.Places(self.folder, ports, self.libvirtd.uri)
            self._at_once(self._start_mariadb, self._start_rabbitmq, self._start_memcached)
            self._at_once(
                *(self._start_keystone, self._start_nova, self._start_neutron),
                *(self._start_glance, self._start_placement),
            )
        self.took["all"] = time.monotonic() - begin

    def _start_mariadb(self) -> None:
        folder = self.folder / "mariadb"
        data, init = folder / "data", folder / "init.sql"
        folder.mkdir()
        init.write_text("".join(f"CREATE DATABASE {name};\n" for name in configs.DATABASES))
        common = ("--no-defaults", "--user=root", f"--datadir={data}")
        with self._timed("mariadb"):
            self._programs.run(
                "mariadb-install-db",
                *(
                    "mariadb-install-db",
                    *common,
                    "--skip-test-db",
                    "--auth-root-authentication-method=normal",
                ),
            )
            self._programs.start_telling(
                "mariadbd",
                *("mariadbd", *common, f"--socket={self.places.database_socket}", "--skip-networking"),
                *("--character-set-server=utf8mb3", "--collation-server=utf8mb3_general_ci"),
                *(f"--init-file={init}", *SMALL_DATABASE),
            )

    def _start_rabbitmq(self) -> None:
        folder = self.folder / "rabbitmq"
        folder.mkdir()
        config, empty, plugins = (folder / name for name in ("rabbitmq.conf", "env.conf", "plugins"))
        config.write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.places.ports['rabbitmq']}\n"
            "log.console = true\nlog.console.level = warning\nlog.file = false\n"
            "vm_memory_high_watermark.absolute = 512MB\ndisk_free_limit.absolute = 50MB\n"
        )
        empty.touch()
        plugins.write_text("[].")
        with self._timed("rabbitmq"):
            self._programs.start_telling(
                "rabbitmq",
                RABBITMQ,
                RABBITMQ_NODENAME="cloud@localhost",
                RABBITMQ_MNESIA_BASE=folder,
                RABBITMQ_LOG_BASE=folder,
                RABBITMQ_CONFIG_FILE=config,
                RABBITMQ_CONF_ENV_FILE=empty,
                RABBITMQ_ENABLED_PLUGINS_FILE=plugins,
                RABBITMQ_DIST_PORT=self._find_port(),
                RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=SMALL_ERLANG,
                ERL_EPMD_ADDRESS="127.0.0.1",
                ERL_EPMD_PORT=self._find_port(),
            )

    def _start_memcached(self) -> None:
        address, port = self.places.cache.split(":")
        self._programs.start("memcached", "memcached", "-u", "root", "-l", address, "-p", port, "-m", "32")

    def _start_keystone(self) -> None:
        file = self._configure("keystone", "keystone.conf", configs.plan_keystone(self.places))
        keys = self.folder / "keystone" / "keys"
        keys.mkdir(parents=True)
        for number in range(
            2
        ):  # the next key and the present one, as `keystone-manage fernet_setup` makes them
            (keys / str(number)).write_bytes(base64.urlsafe_b64encode(os.urandom(32)))
        manage = ("keystone-manage", "--config-file", file)
        url = self.places.url("keystone")
        with self._timed("keystone: database"):
            self._programs.run("keystone-manage", *manage, "db_sync")
            self._programs.run(
                "keystone-manage",
                *(*manage, "bootstrap", "--bootstrap-region-id", configs.REGION),
                *("--bootstrap-password", configs.PASSWORD),
                *("--bootstrap-public-url", url, "--bootstrap-internal-url", url),
            )
        self._serve("keystone", "keystone.wsgi.api", OS_KEYSTONE_CONFIG_DIR=file.parent)
        self._wait_for_answer("keystone")
        with self._timed("keystone: services and users"):
            self._register()
        self._registered.set()

    def _start_glance(self) -> None:
        file = self._configure("glance", "glance-api.conf", configs.plan_glance(self.places))
        shutil.copy(configs.shipped("glance/glance-api-paste.ini"), file.parent)
        with self._timed("glance: database"):
            self._programs.run("glance-manage", "glance-manage", "--config-file", file, "db_sync")
        self._serve("glance", "glance.wsgi.api", OS_GLANCE_CONFIG_DIR=file.parent)
        self._wait_for_answer("glance")

    def _start_placement(self) -> None:
        file = self._configure("placement", "placement.conf", configs.plan_placement(self.places))
        with self._timed("placement: database"):
            self._programs.run("placement-manage", "placement-manage", "--config-file", file, "db", "sync")
        self._serve("placement", "placement.wsgi.api", OS_PLACEMENT_CONFIG_DIR=file.parent)
        self._wait_for_answer("placement")

    def _start_neutron(self) -> None:
        file = self._configure("neutron", "neutron.conf", configs.plan_neutron(self.places))
        with self._timed("neutron: database"):
            self._programs.run(
                "neutron-db-manage", "neutron-db-manage", "--config-file", file, "upgrade", "heads"
            )
        self._serve(
            *("neutron", "neutron.wsgi.api"),
            OS_NEUTRON_CONFIG_DIR=file.parent,
            OS_NEUTRON_CONFIG_FILES=file.name,
            PYTHONPATH=HERE / "wires",
        )
        self._wait_for_answer("neutron")

    def _start_nova(self) -> None:
        file = self._configure("nova", "nova.conf", configs.plan_nova(self.places))
        manage = ("nova-manage", "--config-file", file)
        with self._timed("nova: databases"):
            self._programs.run("nova-manage", *manage, "api_db", "sync")
            cell0 = self.places.database("nova_cell0")
            self._programs.run("nova-manage", *manage, "cell_v2", "map_cell0", "--database_connection", cell0)
            self._programs.run("nova-manage", *manage, "cell_v2", "create_cell", "--name", "cell1")
            self._programs.run("nova-manage", *manage, "db", "sync")
        self._programs.start("nova-scheduler", "nova-scheduler", "--config-file", file)
        # nova-compute, started earlier than it, would ask in vain and try again after ten seconds.
        self._programs.start_telling("nova-conductor", "nova-conductor", "--config-file", file)
        self._serve_nova("nova", configs.OUR_ROUTER, self._listeners["nova"], {})
        self._wait_for_answer("nova")
        assert self._registered.wait(PATIENCE_S), "keystone does not answer"
        with self._timed("nova-compute"):
            self.start_compute(configs.OUR_DRIVER)
            compute = self.connect("admin").compute
            # Nobody says that the scheduler has found the host: the API shows it from then on.
            wait_until(lambda: self._find_hosts(compute) == ["up"], "no host")

    def _register(self) -> None:
        """Tell keystone who the services are, where they are, and who uses them."""
        identity = self.connect("admin").identity
        admin = identity.find_role("admin")
        roles = [admin, identity.find_role("service") or identity.create_role(name="service")]
        project = identity.create_project(name="service", domain_id="default")
        for name, (kind, _) in configs.APIS.items():
            if name == "keystone":
                continue
            user = identity.create_user(name=name, password=configs.PASSWORD, domain_id="default")
            for role in roles:
                identity.assign_project_role_to_user(project, user, role)
            service = identity.create_service(name=name, type=kind)
            identity.create_endpoint(
                service_id=service.id, interface="public", url=self.places.url(name), region_id=configs.REGION
            )
        member = identity.find_role("member")
        for name in USERS:
            project = identity.create_project(name=name, domain_id="default")
            user = identity.create_user(name=name, password=configs.PASSWORD, domain_id="default")
            identity.assign_project_role_to_user(project, user, member)

    # ------------------------------------------------------------------ helpers

    def _login(self, user: str) -> dict[str, str]:
        return {
            "auth_url": self.places.url("keystone"),
            "username": user,
            "password": configs.PASSWORD,
            "project_name": user,
            "user_domain_name": "Default",
            "project_domain_name": "Default",
        }

    def _configure(self, service: str, name: str, sections: configs.Sections) -> Path:
        file = self.folder / "etc" / service / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(configs.render(sections))
        return file

    def _serve(self, name: str, module: str, **environment: str | Path) -> None:
        self._serve_on(self._listeners[name], name, module, **environment)

    def _serve_nova(self, name: str, router: str, listener: socket.socket, policy: Mapping[str, str]) -> None:
        file = self._configure(name, "nova.conf", configs.plan_nova(self.places))
        file.with_name("api-paste.ini").write_text(configs.render_paste(router))
        file.with_name("policy.yaml").write_text(json.dumps(policy))  # which is YAML too
        self._serve_on(listener, name, "nova.wsgi.osapi_compute", OS_NOVA_CONFIG_DIR=file.parent)

    def _serve_on(self, listener: socket.socket, name: str, module: str, **environment: str | Path) -> None:
        fd = listener.fileno()
        words = (sys.executable, HERE / "serve.py", module, str(fd))
        self._programs.start(f"{name}-api", *words, fds=[fd], **environment)
        listener.close()  # if it dies nobody is to wait for it

    def _wait_for_answer(self, service: str) -> None:
        """Wait until an API answers at all, so that one that cannot start is named, and its time is known."""
        with self._timed(f"{service}: service"):
            connection = http.client.HTTPConnection(
                "127.0.0.1", self.places.ports[service], timeout=PATIENCE_S
            )
            connection.request("GET", "/")
            status = connection.getresponse().status
            connection.close()
        assert status < 500, f"{service} answers {status}: see .dev/log/cloud/{service}-api.log"

    @staticmethod
    def _listen() -> socket.socket:
        return socket.create_server(("127.0.0.1", 0), backlog=128)

    def _find_port(self) -> int:
        """Return a free port, for programs that open it themselves: nobody else is in this network."""
        with self._listen() as listener:
            return int(listener.getsockname()[1])

    def _run_compute(
        self, host_programs: programs.Programs, places: configs.Places, host: str, driver: str
    ) -> subprocess.Popen[bytes]:
        before = self._find_last_report(host)
        (self.folder / host / "instances").mkdir(parents=True, exist_ok=True)
        file = self._configure(host, "nova.conf", configs.plan_compute(places, host, driver))
        process = host_programs.start(f"nova-compute-{host}", "nova-compute", "--config-file", file)
        wait_until(lambda: self._find_last_report(host) != before, f"nova-compute of {host} does not report")
        return process

    def _install_hook(self, daemon: private.Libvirtd, host: str) -> None:
        """Let servers of a host that are made of a live snapshot map its memory."""
        daemon.hooks.mkdir(parents=True)
        hook_install.install(daemon.hooks, images=[self.folder / host / "instances" / "liveclone" / "states"])

    def _find_last_report(self, host: str) -> Any:
        services = self.connect("admin").compute.services(binary="nova-compute", host=host)
        return [service.updated_at for service in services]

    @staticmethod
    def _find_hosts(compute: Any) -> list[str]:
        return [str(host.state) for host in compute.hypervisors(details=True)]

    def _ask(self, *words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout

    def _at_once(self, *parts: Callable[[], None]) -> None:
        """Start some parts side by side, each in a thread that is where this one is; raises what the first one raised."""
        with futures.ThreadPoolExecutor(len(parts)) as threads:
            works = [threads.submit(part) for part in parts]
            for work in futures.as_completed(works):
                work.result()

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.took[what] = time.monotonic() - begin

    def _keep_logs(self) -> None:
        """Keep what the services said in .dev/log/cloud: the folder goes."""
        kept = private.ROOT / ".dev" / "log" / "cloud"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self._programs.log, kept)
        (kept / "seconds").write_text("".join(f"{took:6.1f} {what}\n" for what, took in self.took.items()))


def make_folder(undo: contextlib.ExitStack) -> Path:
    """Make a folder that is removed by `undo`, with a lock that is held as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PARENT))
    undo.callback(shutil.rmtree, folder)
    lock = undo.enter_context((folder / "new").open("w"))
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "new").rename(folder / "lock")  # never there without being held
    return folder


def remove_leftovers() -> None:
    """End and remove what clouds have left whose processes were killed."""
    for folder in PARENT.glob(f"{PREFIX}*"):
        with (
            contextlib.suppress(OSError),
            (folder / "lock").open() as lock,
        ):  # its owner lives, or just begins
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            private.end_leftovers(folder)
            shutil.rmtree(folder)


def wait_until(is_so: Callable[[], object], otherwise: str, patience_s: float = PATIENCE_S) -> None:
    """Ask until it is so: OpenStack tells nobody.

    Raises:
        AssertionError: it never was; with the words of `otherwise`.
    """
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)
