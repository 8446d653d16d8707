"""What holds for all tests of the plugin: they run in an environment of their own (./dev test --nova), beside a real Nova.

    tests/unit        milliseconds; Nova's objects, no service
    tests/vm          real guests: Nova's driver on a libvirt of the run's own; Glance is a stand-in, no service
    tests/functional  Nova's own functional fixtures: API, conductor, scheduler and compute for real, with SQLite, and
                      in-memory stand-ins for the message queue, Glance, Neutron, placement's HTTP and libvirt

The plugin is the one that is installed, not the one in the checkout: Nova finds a driver only in its own package.
"""

from __future__ import annotations

import os

# nova-compute has native threads unless an operator wants eventlet, Nova's fixtures the other way round. To be said before
# anything of Nova is imported. NOT HANDLED: eventlet (`false` in the environment). Under it the processes of xdist hang.
os.environ.setdefault("OS_NOVA_DISABLE_EVENTLET_PATCHING", "true")

import nova.tests.functional  # noqa: F401
