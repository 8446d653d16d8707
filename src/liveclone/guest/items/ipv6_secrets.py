"""Secrets that stable IPv6 addresses are made of (RFC 7217): whoever has the same one may make the same address.

    kernel             net.ipv6.conf.*.stable_secret, and the lines of sysctl.d(5) that set it at boot
    NetworkManager     its secret_key (no MAC goes into its addresses: with the same key they are the same)
    dhcpcd             its secret

Temporary addresses (RFC 8981) are drawn for each card anew, and a clone's card is new. systemd-networkd's stable addresses
come from the machine-id.
"""

from __future__ import annotations

import binascii
import re
import socket

from .. import files
from ..context import Context
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

_CONF = "/proc/sys/net/ipv6/conf"
_SYSCTLS = "/etc/sysctl.d"
_LINE = re.compile(r"(?m)^(\s*-?\s*net[./]ipv6[./]conf[./]([^\s=]+)[./]stable_secret\s*=[ \t]*)(\S+)")
_NETWORKMANAGER = "/var/lib/NetworkManager/secret_key"
_NETWORKMANAGER_FORM = "nm-v2:"  # then at least 32 characters, taken as they are; since NetworkManager 1.16
_DHCPCD = "/var/lib/dhcpcd/secret"


class Ipv6Secrets(Item):
    name = "ipv6_secrets"
    only_renews = True

    def observe(self, ctx: Context) -> Observed:
        secrets = [text.strip() for _, text in _find_in_kernel(ctx)]
        secrets += [match[3] for _, text in _find_sysctls(ctx) for match in _LINE.finditer(text)]
        found = [secret.encode() for secret in secrets]
        found += [secret for _, secret in _find_files(ctx)]
        return b"\n".join(found) or None, {}

    def reset(self, ctx: Context) -> Details:
        fresh: dict[str, str] = {}

        def renew(conf: str) -> str:
            if conf not in fresh:
                fresh[conf] = socket.inet_ntop(socket.AF_INET6, ctx.kernel.draw(16))
            return fresh[conf]

        for conf, _ in _find_in_kernel(ctx):
            with open(ctx.path(f"{_CONF}/{conf}/stable_secret"), "w", encoding="ascii") as file:
                file.write(renew(conf))
        for name, text in _find_sysctls(ctx):
            ctx.rewrite(name, _LINE.sub(lambda match: match[1] + renew(match[2]), text))
        for name, old in _find_files(ctx):
            if name == _NETWORKMANAGER:
                ctx.rewrite(name, _NETWORKMANAGER_FORM + binascii.b2a_base64(ctx.kernel.draw(32)).decode())
            else:
                ctx.rewrite(name, ctx.kernel.draw(old.count(b":") + 1).hex(":") + "\n")
        return {}


def _find_in_kernel(ctx: Context) -> list[tuple[str, str]]:
    """Return those that are set, with the name of their card (or "default")."""
    found = []
    for conf in ctx.names(_CONF):
        try:
            text = files.find_text(ctx.path(f"{_CONF}/{conf}/stable_secret"))
        except OSError:  # EIO: none has been set
            continue
        if text:
            found.append((conf, text))
    return found


def _find_sysctls(ctx: Context) -> list[tuple[str, str]]:
    """Return name and text of each file that sets one."""
    names = [f"{_SYSCTLS}/{name}" for name in ctx.names(_SYSCTLS) if name.endswith(".conf")]
    texts = [(name, files.find_text(ctx.path(name))) for name in ["/etc/sysctl.conf", *names]]
    return [(name, text) for name, text in texts if text and "stable_secret" in text]


def _find_files(ctx: Context) -> list[tuple[str, bytes]]:
    found = [(name, files.find_bytes(ctx.path(name))) for name in (_NETWORKMANAGER, _DHCPCD)]
    return [(name, data) for name, data in found if data]


ITEM = Ipv6Secrets
