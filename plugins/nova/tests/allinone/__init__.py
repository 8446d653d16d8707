"""A real OpenStack on this one machine, with the plugin in it, and real guests under emulation.

    test_*.py ── conftest.py ── cloud.py ── programs.py ── a libvirtd of our own (tests/libvirtd.py of the checkout)
                                  │  configs.py   what each service is told
                                  │  serve.py     how an API is served
                                  │  wires.py     how Neutron's ports become taps
                                  └─ guests.py, guest/   what boots

All of it is in a folder, a mount namespace and a network namespace of its own: its addresses are 127.0.0.1 in there, its
taps are seen by nobody, and it ends when the last test that uses it does.
"""
