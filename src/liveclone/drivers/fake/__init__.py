"""A hypervisor without virtualization: every machine is a small process that plays hypervisor and guest.

It is shipped, held to the same contract kit as the others (tests/contract), and shows what the contract asks for in a
few hundred lines. With LIVECLONE_DRIVER=fake everything above the drivers runs in milliseconds, without root and
without an image.

    our command                      one process a machine, which outlives the command
    driver    boot, restore, open    machine   the hypervisor: control socket, run state, NICs, captures
    handle    one machine            guest     the processor, the system's files, the real guest agent
    capture   the three ways         ram       pages in a real file, mapped shared or private
    recovery  after a capture died   disk      layers as the engine makes them, written at the end
    wire      control socket         faults    what a test wants to go wrong
    launch    start, find again      port      an agent port: host's socket <-> guest's channel

What is real: the process, its sockets, RAM as a mapped file on tmpfs, disk layers with locks as QEMU's, the guest
agent with its identity items. What is not: a NIC carries no frame; a command of `exec` runs on the host, in the folder
that is the guest's root.
"""
