"""The demo's application, run inside the guest: slow to warm up, then quick, with state that only RAM holds.

    :8080/          what it is: token, size and digest of the index, uptime of the process
    :8080/identity  what makes this machine this machine, as seen from inside, and a fresh random draw
    :8080/search?q= a look-up in the index
    :8081           a line every five milliseconds, for as long as the client stays

It builds a real inverted index over a generated corpus, holds a random token in memory only, and appends each request to
a file on its disk. Standard library alone.
"""

import base64
import hashlib
import http.server
import json
import os
import random
import socketserver
import sys
import threading
import time
import urllib.parse
from typing import Any

DOCUMENTS = int(os.environ.get("WARM_DOCUMENTS", "6000"))
WORDS_EACH = 40
VOCABULARY = 5000
LOG = "/var/lib/warm-app.log"


def build_index() -> tuple[dict[str, list[int]], str]:
    """Return word -> sorted document numbers, and a digest that two machines can compare."""
    source = random.Random(20131)  # the corpus is the same everywhere; the token below is not
    index: dict[str, set[int]] = {}
    for document in range(DOCUMENTS):
        for _ in range(WORDS_EACH):
            word = "w%d" % min(int(source.paretovariate(0.7)), VOCABULARY)
            index.setdefault(word, set()).add(document)
    ordered = {word: sorted(documents) for word, documents in index.items()}
    digest = hashlib.sha256(json.dumps(ordered, sort_keys=True).encode()).hexdigest()
    return ordered, digest


def read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def fingerprint() -> str:
    """Return the SHA256 fingerprint of the ed25519 host key, as ssh-keygen prints it."""
    parts = read("/etc/ssh/ssh_host_ed25519_key.pub").split()
    if len(parts) < 2:
        return ""
    digest = hashlib.sha256(base64.b64decode(parts[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def macs() -> list[str]:
    return sorted(
        read("/sys/class/net/%s/address" % name) for name in os.listdir("/sys/class/net") if name != "lo"
    )


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urllib.parse.urlparse(self.path)
        if url.path == "/identity":
            answer: dict[str, Any] = {
                "hostname": os.uname().nodename,
                "machine_id": read("/etc/machine-id"),
                "host_key": fingerprint(),
                "mac": ",".join(macs()),
                "random": os.urandom(16).hex(),
            }
        elif url.path == "/search":
            word = urllib.parse.parse_qs(url.query).get("q", [""])[0]
            answer = {"word": word, "documents": INDEX.get(word, [])[:20]}
        else:
            answer = {"words": len(INDEX), "warm_up_s": WARM_UP_S, "served_s": time.monotonic() - STARTED}
        answer.update(token=TOKEN, index=DIGEST)
        with open(LOG, "a") as log:
            log.write("%f %s\n" % (time.time(), self.path))
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Ticker(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        number = 0
        while True:
            number += 1
            try:
                self.request.sendall(b"%d %s\n" % (number, TOKEN.encode()))
            except OSError:
                return
            time.sleep(0.005)  # the pace of the stream, not a wait for anything


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True


class TickServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


if __name__ == "__main__":
    began = time.monotonic()
    INDEX, DIGEST = build_index()
    TOKEN = os.urandom(16).hex()
    WARM_UP_S = round(time.monotonic() - began, 3)
    STARTED = time.monotonic()
    ticks = TickServer(("0.0.0.0", 8081), Ticker)
    threading.Thread(target=ticks.serve_forever, daemon=True).start()
    print("warm after %.1f s" % WARM_UP_S, file=sys.stderr, flush=True)
    Server(("0.0.0.0", 8080), Handler).serve_forever()
