"""Runs in a container: a child writes to so many MiB and keeps them, then this process becomes the application.

As the guests' memory is filled by a process beside the application. Nothing of the host's stays open: a process that is
saved may know no file that is not in its own root.
"""

import mmap
import os
import sys
import time

MIB = 1 << 20


def fill(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block = os.urandom(MIB)
    for offset in range(0, size * MIB, MIB):
        memory[offset : offset + MIB] = block
    return memory


def main(size: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)
    ready, tell = os.pipe()
    if not os.fork():
        os.close(ready)
        memory = fill(size)
        os.close(tell)
        while memory:
            time.sleep(3600)
    os.close(tell)
    os.read(ready, 1)  # the end: it is written
    os.close(ready)
    os.execv("/usr/bin/python3", ["/usr/bin/python3", "/opt/warm_app.py"])


if __name__ == "__main__":
    main(int(sys.argv[1]))
