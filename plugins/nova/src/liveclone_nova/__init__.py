"""Live snapshots in OpenStack Nova, on unmodified Nova: a server action, its RPC, and a libvirt driver.

    client                    nova-api                            nova-compute
    POST servers/ID/action -> api (router, controller, schema) -> endpoint (states, notifications, image on error)
                              compute_api (checks, image)         interface (what a virt driver offers)
                              rpcapi (call, cast)                 libvirt_driver -> capture, clone, recovery

Two lines of configuration and a key switch it on (docs/nova/README.md); without them Nova is as ever. What belongs to
machines in general (formats, capture, identity) is liveclone's; here is only what Nova wants of it.
"""

from __future__ import annotations

__version__ = "0.1.0"
