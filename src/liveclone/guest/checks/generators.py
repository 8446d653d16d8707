"""Programs with a random generator or TLS sessions of their own in memory: the kernel's new entropy does not reach them.

A library's generator takes a new seed from the kernel now and then, not when the machine was cloned. Until then two
clones draw the same, and TLS session ticket keys stay the same until the program ends. One finding for each service.

Not told of: parts of the system that have such a library in memory and draw from the kernel alone (systemd's own
services use getrandom(2); udev and getty have OpenSSL for signatures and hashes), and sshd, which the agent starts anew
in each clone (items/ssh_host_keys).
"""

from __future__ import annotations

from . import Check, Guest, finding, remedy_by_service

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..programs import Program
    from . import Finding

LIBRARIES = {
    "libcrypto": "OpenSSL",
    "libssl": "OpenSSL's TLS",
    "libgnutls": "GnuTLS",
    "libgcrypt": "Libgcrypt",
    "libsoftokn3": "NSS",
    "libfreeblpriv3": "NSS",
    "libmbedcrypto": "Mbed TLS",
    "libwolfssl": "wolfSSL",
    "libsodium": "libsodium",
    "libjvm": "a Java virtual machine",
    "libnode": "Node.js",
}


_WITHOUT = (
    "systemd-",
    "getty@",
    "serial-getty@",
    "console-getty.",
    "dbus",
    "ssh.",
    "sshd.",
    "liveclone-agent.",
)


class Generators(Check):
    name = "generators"

    def look(self, guest: Guest) -> Iterator[Finding]:
        groups: dict[str, list[tuple[Program, list[str]]]] = {}
        for program in guest.programs:
            if program.pid == 1 or program.unit.startswith(_WITHOUT):
                continue
            stems = {name.split(".")[0].split("-")[0] for name in program.libraries()}
            found = sorted({LIBRARIES[stem] for stem in stems & LIBRARIES.keys()})
            if found:
                groups.setdefault(program.unit or str(program), []).append((program, found))
        for subject, members in groups.items():
            remedy, advice = remedy_by_service(
                guest, members[0][0], "what it draws from its own generator may be what its copy draws"
            )
            libraries = ", ".join(sorted({library for _, found in members for library in found}))
            age_s = max(program.age_s for program, _ in members)
            seen = f"has {libraries} in memory, and runs for {age_s:.0f} s"
            yield finding(subject, seen, remedy, advice)


CHECK = Generators
