"""The only code that touches the kernel: processes, sockets, memory, files, locks, links, acceleration."""
