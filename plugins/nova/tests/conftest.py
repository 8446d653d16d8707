"""What holds for all tests of the plugin: they run in an environment of their own (./dev test --nova), beside a real Nova.

    tests/unit        milliseconds; Nova's objects, no service
    tests/vm          real guests: Nova's driver on a libvirt of the run's own; Glance is a stand-in, no service
    tests/functional  Nova's own functional fixtures: API, conductor, scheduler and compute for real, with SQLite, and
                      in-memory stand-ins for the message queue, Glance, Neutron, placement's HTTP and libvirt
    tests/allinone    a cloud for real: all of that as processes, with guests; root only, left out by --fast

The plugin is the one that is installed, not the one in the checkout: Nova finds a driver only in its own package.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

# nova-compute has native threads unless an operator wants eventlet, Nova's fixtures the other way round. To be said before
# anything of Nova is imported. NOT HANDLED: eventlet (`false` in the environment). Under it the processes of xdist hang.
os.environ.setdefault("OS_NOVA_DISABLE_EVENTLET_PATCHING", "true")

import nova.tests.functional  # noqa: F401

ALLINONE = Path(__file__).with_name("allinone")
# Seconds; the first test waits for the guest's image and the cloud.
PATIENCE_S = 600


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests that start no cloud")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "allinone: in tests/allinone")
    # To be terminated is to be interrupted: the cloud is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class Spread(LoadScopeScheduling):
    """Which tests a process of xdist is given: single ones, but all of a folder with guests: one cloud, one libvirtd.

    xdist's marker for groups has no effect with pytest 9.2: it changes what are no longer the ids of tests.
    """

    def _split_scope(self, nodeid: str) -> str:
        return next(
            (folder for folder in ("tests/allinone/", "tests/vm/") if nodeid.startswith(folder)), nodeid
        )


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Spread:
    # As they are collected: tests/vm comes last. It reads Nova's configuration, which Nova's fixtures want to do themselves.
    config.option.loadscopereorder = False
    return Spread(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if ALLINONE in item.path.parents:
            item.add_marker("allinone")
            item.add_marker(pytest.mark.timeout(PATIENCE_S))
    if config.getoption("--fast"):
        config.hook.pytest_deselected(
            items=[item for item in items if item.get_closest_marker("allinone") is not None]
        )
        items[:] = [item for item in items if item.get_closest_marker("allinone") is None]
