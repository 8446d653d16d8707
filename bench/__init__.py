"""Measurements: what a live snapshot costs its source, and what a live clone costs its host.

    ./dev bench [--quick | --full] [--json FILE]     measure: table on stdout, series in FILE, picture beside it
    ./dev bench --from FILE                          table and picture of what was measured before
    ./dev bench --compare REVISION                   this checkout and another revision, by turns: what differs
    ./dev bench peers [--json FILE] ...              live clones beside what else there is: see peers/

    __main__   which command                command    what each of them does: files, tables, picture
    peers/     beside what else there is    lab        temporary home, image, sources; the clean-up
    plan       how much is measured         recording  values while they come in
    pauses     source_pause guest_gap       series     series as they stand in the file
    clones     clone_ready clone_host       targets    what is wanted of the figures
    pool       pool_host pool_ready         table      text
               pool_memory pool_fill        picture    SVG
    crowd      clones_per_second         private    what a process has to itself, and what for
               crowd_ready private_*
    libvirt    clone_start virsh_restore    domains    libvirtd, ordinary domains
                                            save_image for `virsh restore`
    after      after_*                      watching   a load, from outside; qemu_work: what the host did
                                            seconds    second by second; picture_after: the same as SVG
    instructions  start_ and clone_instructions, counted by callgrind; only when asked for
    turns      two revisions by turns       comparison what differs; significance: or is it chance

A benchmark asserts nothing: it measures, and says beside each target whether it was met on this host.
"""
