#!/usr/bin/python3
"""A web application with state that two machines must not share, and how it takes part.

    GET /    {"node": ..., "coupon": ..., "stock": ..., "started": ...}

What is warm stays in a clone: the stock, which takes long to load, and the process itself. What must not be the same
twice is made anew: the id of the node, the state of Python's generator of (not cryptographic) random numbers, from which
coupons are drawn, and the key that signs sessions.
"""

import hashlib
import hmac
import http.server
import json
import os
import random
import threading
import time
from pathlib import Path

import liveclone_app

BUSY = Path("/run/shop.busy")  # an order is being booked
PORT = int(os.environ.get("SHOP_PORT", "8090"))


class Shop:
    """What the application holds in memory."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.started = time.time()
        self.stock = {f"article {number}": number * 7 % 100 for number in range(20000)}
        self.renew()

    def renew(self) -> None:
        """Make anew what belongs to one machine alone."""
        with self.lock:
            random.seed()  # from the kernel, which has fresh randomness by now
            self.node = os.urandom(8).hex()
            self.session_key = os.urandom(32)

    def answer(self) -> dict:
        with self.lock:
            return {
                "node": self.node,
                "coupon": f"{random.getrandbits(32):08x}",
                "session": hmac.new(self.session_key, b"visitor 1", hashlib.sha256).hexdigest()[:16],
                "stock": len(self.stock),
                "started": self.started,
                "host": os.uname().nodename,
            }

    def handle(self, event: "liveclone_app.Event") -> None:
        """Take part: called in a thread; whoever waits for this machine waits for our return."""
        if event.kind == "cloned":
            self.renew()
        elif event.kind == "prepare" and BUSY.exists():
            raise RuntimeError("an order is being booked")  # the snapshot is called off, and says why


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps(SHOP.answer()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    SHOP = Shop()
    liveclone_app.watch("shop", SHOP.handle)
    http.server.ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()
