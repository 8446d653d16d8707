"""The forwarder of one machine's published ports: a program of its own, kept small because every machine has one.

    client ──> listening socket ┐                    ┌─> socket made here ──> guest
               (host's network, │  one epoll loop,   │   (this process lives in the
               bound by parent) ┘  one shared buffer ┘    machine's network namespace)

    forwarder    the loop: accepts clients, gives events to the others, ends with the machine
    dialer       connects to the guest, again and again while its NIC is away
    relay        carries bytes between the two ends of a connection
    machine      whose end is ours, and its successor after a handover

host/ports.py starts it. It imports nothing of ours but its own modules, by a path that holds nothing else that it needs,
so that it loads little (`-I -S`).
"""
