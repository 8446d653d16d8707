"""What holds for all tests of the plugin: they run in an environment of their own (./dev test --nova), beside a real Nova.

    tests/unit        milliseconds; Nova's objects, no service
    tests/functional  Nova's own functional fixtures: API, conductor, scheduler and compute for real, with SQLite, and
                      in-memory stand-ins for the message queue, Glance, Neutron, placement's HTTP and libvirt

The plugin is the one that is installed, not the one in the checkout: Nova finds a driver only in its own package.
"""

from __future__ import annotations

import os

# Nova's services have native threads unless an operator wants eventlet, its fixtures the other way round. To be said before
# anything of Nova is imported; with `false` in the environment the tests run on eventlet.
os.environ.setdefault("OS_NOVA_DISABLE_EVENTLET_PATCHING", "true")

import nova.tests.functional  # noqa: F401
