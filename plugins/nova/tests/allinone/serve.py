"""Serve an API of OpenStack on a socket that listens already: serve.py MODULE DESCRIPTOR

Whoever connects before the service is ready waits in the socket's queue. The services read their own options from the
command line, so it is taken away before they are imported.
"""

from __future__ import annotations

import importlib
import socket
import sys

import waitress

# Nova asks Neutron, which tells Nova, and all of them ask Keystone: nobody may wait for a thread that waits for him.
THREADS = 12
LARGEST_BODY = 8 << 30


def main(module: str, descriptor: str) -> None:
    """Serve until killed."""
    sys.argv = [module]
    listener = socket.socket(fileno=int(descriptor))
    application = importlib.import_module(module).application
    waitress.serve(
        application, sockets=[listener], threads=THREADS, max_request_body_size=LARGEST_BODY, ident=None
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
