"""What each service of the cloud is told: pure, from where everything is to a configuration file's text.

nova-compute has a file of its own, since it refuses to start where it could reach a database. MariaDB is a Unix socket, all
else is a port of 127.0.0.1.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

PASSWORD = "secret"
SEAL_KEY = "of a cloud that lives as long as its tests"
REGION = "here"
DATABASES = ("keystone", "glance", "placement", "neutron", "nova_api", "nova_cell0", "nova")
# Service, type in the catalogue, path of its API.
APIS = {
    "keystone": ("identity", "/v3"),
    "glance": ("image", ""),
    "placement": ("placement", ""),
    "neutron": ("network", ""),
    "nova": ("compute", "/v2.1"),
}
THEIR_ROUTER = "nova.api.openstack.compute:APIRouterV21.factory"
OUR_ROUTER = "liveclone_nova.api:APIRouter.factory"
THEIR_DRIVER = "libvirt.LibvirtDriver"
OUR_DRIVER = "liveclone.LibvirtDriver"

Sections = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class Places:
    """Where everything is.

    Attributes:
        folder: of the cloud.
        ports: of each API, and of `rabbitmq` and `memcached`.
        libvirt: how nova-compute connects.
    """

    folder: Path
    ports: Mapping[str, int]
    libvirt: str

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}{APIS[service][1]}"

    def database(self, name: str) -> str:
        return f"mysql+pymysql://root@localhost/{name}?unix_socket={quote(str(self.database_socket))}"

    @property
    def database_socket(self) -> Path:
        return self.folder / "mariadb" / "socket"

    @property
    def queue(self) -> str:
        return f"rabbit://guest:guest@127.0.0.1:{self.ports['rabbitmq']}/"

    @property
    def cache(self) -> str:
        return f"127.0.0.1:{self.ports['memcached']}"


def render(sections: Sections) -> str:
    """Return the text of a file in oslo.config's form."""
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {_say(value)}\n" for key, value in options.items())
        for name, options in sections.items()
    )


def _say(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def shipped(name: str) -> Path:
    """Return a file that a service ships beside its code, as `glance/glance-api-paste.ini`."""
    return Path(sysconfig.get_path("data")) / "etc" / name


def _login(places: Places, service: str) -> dict[str, object]:
    return {
        "auth_url": places.url("keystone"),
        "auth_type": "password",
        "username": service,
        "password": PASSWORD,
        "project_name": "service",
        "user_domain_name": "Default",
        "project_domain_name": "Default",
        "region_name": REGION,
    }


def _guard(places: Places, service: str) -> dict[str, object]:
    """Return how an API looks at the tokens it is shown."""
    public = {"www_authenticate_uri": places.url("keystone"), "memcached_servers": places.cache}
    return public | {"service_token_roles_required": True} | _login(places, service)


def plan_keystone(places: Places) -> Sections:
    return {
        "database": {"connection": places.database("keystone")},
        "token": {"provider": "fernet"},
        "fernet_tokens": {"key_repository": places.folder / "keystone" / "keys"},
        "fernet_receipts": {"key_repository": places.folder / "keystone" / "keys"},
        "cache": {
            "enabled": True,
            "backend": "oslo_cache.memcache_pool",
            "memcache_servers": places.cache,
        },
        "identity": {"password_hash_rounds": 4},  # the least there is: the passwords are no secret
    }


def plan_glance(places: Places) -> Sections:
    store = places.folder / "glance"
    return {
        "DEFAULT": {"enabled_backends": "file:file", "enabled_import_methods": "[]"},
        "database": {"connection": places.database("glance")},
        "glance_store": {"default_backend": "file"},
        "file": {"filesystem_store_datadir": store / "images"},
        "os_glance_staging_store": {"filesystem_store_datadir": store / "staging"},
        "os_glance_tasks_store": {"filesystem_store_datadir": store / "tasks"},
        "keystone_authtoken": _guard(places, "glance"),
        "paste_deploy": {"flavor": "keystone", "config_file": shipped("glance/glance-api-paste.ini")},
    }


def plan_placement(places: Places) -> Sections:
    return {
        "placement_database": {"connection": places.database("placement")},
        "api": {"auth_strategy": "keystone"},
        "keystone_authtoken": _guard(places, "placement"),
    }


def plan_neutron(places: Places) -> Sections:
    state = places.folder / "neutron"
    return {
        "DEFAULT": {
            "core_plugin": "ml2",
            "service_plugins": "",
            "transport_url": places.queue,
            "auth_strategy": "keystone",
            "api_paste_config": shipped("neutron/api-paste.ini"),
            "state_path": state,
            "dhcp_agent_notification": False,
        },
        "database": {"connection": places.database("neutron")},
        "keystone_authtoken": _guard(places, "neutron"),
        "nova": _login(places, "nova"),
        "oslo_concurrency": {"lock_path": state / "lock"},
        "ml2": {
            "type_drivers": "local",
            "tenant_network_types": "local",
            "mechanism_drivers": "wires",
            "extension_drivers": "",
        },
        "securitygroup": {"enable_security_group": False},
    }


def plan_nova(places: Places) -> Sections:
    """Plan for nova-api, nova-conductor, nova-scheduler and nova-manage."""
    return {
        "DEFAULT": {
            "transport_url": places.queue,
            "my_ip": "127.0.0.1",
            "state_path": places.folder / "nova",
            "periodic_fuzzy_delay": 0,
        },
        "api_database": {"connection": places.database("nova_api")},
        "database": {"connection": places.database("nova")},
        # Who looks for new hosts would otherwise be nova-manage, four seconds each time.
        "scheduler": {"workers": 1, "discover_hosts_in_cells_interval": 1},
        "conductor": {"workers": 1},
        "keystone_authtoken": _guard(places, "nova"),
        **_nova_clients(places),
        "oslo_concurrency": {"lock_path": places.folder / "nova" / "lock"},
    }


def plan_compute(places: Places, host: str, driver: str) -> Sections:
    """Plan for nova-compute.

    Args:
        host: by which the cloud knows it, and a folder's name.
        driver: THEIR_DRIVER or OUR_DRIVER.
    """
    state = places.folder / host
    # Everything is root's here, and there is no sudo.
    helper = {"helper_command": f"privsep-helper --config-file {places.folder}/etc/{host}/nova.conf"}
    return {
        "DEFAULT": {
            "transport_url": places.queue,
            "my_ip": "127.0.0.1",
            "host": host,
            "state_path": state,
            "compute_driver": driver,
            "force_raw_images": False,
            "reserved_host_memory_mb": 64,
            "report_interval": 1,  # and the first one tells that it serves
            # Neutron has no agent here that would say when a port is wired.
            "vif_plugging_is_fatal": False,
            "vif_plugging_timeout": 0,
        },
        **_nova_clients(places),
        "oslo_concurrency": {"lock_path": state / "lock"},
        "libvirt": {
            "connection_uri": places.libvirt,
            "virt_type": "qemu",
            "images_type": "qcow2",
            "inject_partition": -2,
        },
        "liveclone": {"seal_keys": SEAL_KEY},
        # Soon, so that a test sees it: what no server needs goes, and state images without their disk image.
        "image_cache": {"manager_interval": 2, "remove_unused_original_minimum_age_seconds": 2},
        "vnc": {"enabled": False},
        "nova_sys_admin": helper,
        "privsep_osbrick": helper,
        "vif_plug_ovs_privileged": helper,
    }


def _nova_clients(places: Places) -> Sections:
    return {
        "service_user": {"send_service_user_token": True, **_login(places, "nova")},
        "glance": {"endpoint_override": places.url("glance")},
        "placement": _login(places, "nova"),
        "neutron": _login(places, "nova"),
    }


def render_paste(router: str) -> str:
    """Return Nova's api-paste.ini, with the plugin's line or as it is."""
    text = shipped("nova/api-paste.ini").read_text()
    assert text.count(THEIR_ROUTER) == 1
    return text.replace(THEIR_ROUTER, router)
