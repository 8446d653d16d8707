"""Programs with a random generator or TLS sessions of their own in memory: the kernel's new entropy does not reach them.

A library's generator takes a new seed from the kernel now and then, not when the machine was cloned. Until then two
clones draw the same, and TLS session ticket keys stay the same until the program ends.
"""

from __future__ import annotations

from . import Check, Guest, finding, remedy_by_service

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

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


class Generators(Check):
    name = "generators"

    def look(self, guest: Guest) -> Iterator[Finding]:
        for program in guest.programs:
            stems = {name.split(".")[0].split("-")[0] for name in program.libraries()}
            found = sorted({LIBRARIES[stem] for stem in stems & LIBRARIES.keys()})
            if not found:
                continue
            remedy, advice = remedy_by_service(
                guest, program, "what it draws from its own generator may be what its copy draws"
            )
            seen = f"has {', '.join(found)} in memory, and runs for {program.age_s:.0f} s"
            yield finding(str(program), seen, remedy, advice)


CHECK = Generators
