"""Runs in the guest: fills its memory, ticks, or works. Standard library alone; given to the guest's python3 as text.

    fill     write to nearly all memory and keep it; says how much, in MiB, when it is written and the guest is idle again
    tick     a byte on the serial console every millisecond
    http     fill, then answer HTTP requests on `HTTP_PORT`, each with another piece of that memory
    memory   fill, then write a word to each of its pages, round after round; a byte on the console for each `ROW` of them

All go on in a process of their own, so the command ends and its process stays.
"""

import mmap
import os
import socket
import sys
import threading
import time

MIB = 1 << 20
TICK = b"\x01"  # no kernel message and no prompt has it
PACE_S = 0.002

# What is left for the system: its own working set is page cache too, and a guest that must read its programs from disk
# again would measure the disk.
LEFT_MIB = 128

PAGE = 4096
ROW = 4096  # pages

HTTP_PORT = 8080
REQUEST = b"GET / HTTP/1.1\r\nHost: guest\r\n\r\n"
BODY = 8192

IDLE = 0.9
WINDOW_S = 0.5
IDLE_DEADLINE_S = 60.0


def available_mib() -> int:
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) // 1024


def fill() -> tuple[int, mmap.mmap | None]:
    """Write something that is not zero and not the same in two neighbouring pages to as much memory as there is."""
    size = max(0, available_mib() - LEFT_MIB)
    if not size:
        return 0, None
    memory = mmap.mmap(-1, size * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)  # fewer faults: a third of the time under emulation
    block = os.urandom(MIB)
    for offset in range(0, size * MIB, MIB):
        memory[offset : offset + MIB] = block
    return size, memory


def cpu_times() -> tuple[int, int]:
    with open("/proc/stat") as file:
        numbers = [int(number) for number in file.readline().split()[1:]]
    return numbers[3] + numbers[4], sum(numbers)


def wait_idle() -> None:
    """Wait until the processor has little to do: a guest that has just booted still makes its RSA host key."""
    end = time.monotonic() + IDLE_DEADLINE_S
    idle, total = cpu_times()
    while time.monotonic() < end:
        time.sleep(WINDOW_S)
        now_idle, now_total = cpu_times()
        if now_total > total and (now_idle - idle) / (now_total - total) >= IDLE:
            return
        idle, total = now_idle, now_total


def tick() -> None:
    console = os.open("/dev/ttyS0", os.O_WRONLY | os.O_NOCTTY)
    write, sleep = os.write, time.sleep
    while True:
        write(console, TICK)
        sleep(PACE_S)


def serve(listener: socket.socket, memory: mmap.mmap) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection, memory), daemon=True).start()


def answer(connection: socket.socket, memory: mmap.mmap) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % BODY
    place, asked = 0, b""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            data = connection.recv(4096)
            if not data:
                return
            asked += data
            while b"\r\n\r\n" in asked:
                asked = asked.partition(b"\r\n\r\n")[2]
                connection.sendall(head + memory[place : place + BODY])
                place = (place + BODY) % (len(memory) - BODY)


def write(memory: mmap.mmap) -> None:
    console = os.open("/dev/ttyS0", os.O_WRONLY | os.O_NOCTTY)
    stop = len(memory) - len(memory) % (ROW * PAGE)
    number = 0
    while True:
        number += 1
        words = bytes([number % 255 + 1]) * ROW
        for start in range(0, stop, ROW * PAGE):
            memory[start : start + ROW * PAGE : PAGE] = words
            os.write(console, TICK)


def main(what: str) -> None:
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        with os.fdopen(ready) as answer:
            print(answer.read())
        return
    os.setsid()
    os.close(ready)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    size = 0
    memory: mmap.mmap | None = None
    if what != "tick":
        size, memory = fill()
        wait_idle()
    listener = socket.create_server(("", HTTP_PORT)) if what == "http" else None
    os.write(tell, str(size).encode())
    os.close(tell)
    if what == "tick":
        tick()
    if listener is not None and memory is not None:
        serve(listener, memory)
    if what == "memory" and memory is not None:
        write(memory)
    while memory is not None:
        time.sleep(3600)


if __name__ == "__main__":
    main(sys.argv[1])
