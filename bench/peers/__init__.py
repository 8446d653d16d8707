"""liveclone beside what else there is: the same warm application, by each way, in one run on one host.

    ./dev bench peers [--quick] [--only PEER,...] [--sizes MIB,...] [--repeats N] [--json FILE]

    peer_ready     s, from the request to each copy's first correct answer over HTTP; `clones` were asked for at once
    peer_memory    MiB that each has to itself then, idle: private pages of all its processes (crowd.py)
    peer_make      s, from asking for what copies are started from to its being there
    peer_pause     ms, for which what it is made of stands still meanwhile

`peer` names the way, `version` the programs that were run. What cannot be measured here has an entry without values, whose
`obstacle` says what was seen.

    command    ./dev bench peers            base       what a peer is: State, Copy
    measure    one peer after the other     app        the application: its images, and asking it
    table      text                         guest      a guest without liveclone, by its agent
    picture    SVG                          qemu       a QEMU without liveclone
                                            kinds/     the peers, a file each: adding one is adding a file
"""
