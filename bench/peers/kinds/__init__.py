"""The peers, one file each: a module of this package that defines a class `PEER` takes part; nothing else names it."""

from __future__ import annotations

import importlib
import pkgutil

from ..base import Peer


def load_peers() -> list[Peer]:
    """Return one of each peer, in the order in which they are measured."""
    modules = [
        importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)
    ]
    peers: list[Peer] = [module.PEER() for module in modules if hasattr(module, "PEER")]
    return sorted(peers, key=lambda peer: (peer.order, peer.name))
