"""The host name: the kernel's, /etc/hostname, and the line of 127.0.1.1 in /etc/hosts (Debian's habit)."""

from __future__ import annotations

from .. import files
from ..context import Context
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

_OWN_ADDRESS = "127.0.1.1"


class Hostname(Item):
    name = "hostname"
    order = 10

    def observe(self, ctx: Context) -> Observed:
        name = ctx.kernel.hostname()
        return name.encode() or None, {"hostname": name}

    def reset(self, ctx: Context) -> Details:
        if not ctx.hostname:
            raise ValueError("the host sent no name")
        old = ctx.kernel.hostname()
        ctx.kernel.set_hostname(ctx.hostname)
        ctx.replace("/etc/hostname", ctx.hostname + "\n")
        before = files.find_text(ctx.path("/etc/hosts"))
        after = render_hosts(before, old, ctx.hostname)
        if after != before:
            ctx.replace("/etc/hosts", after)
        return {}


def render_hosts(text: str | None, old: str, new: str) -> str:
    """Return /etc/hosts with the own name changed; a domain behind the old name is kept."""
    if text is None:
        return f"127.0.0.1\tlocalhost\n{_OWN_ADDRESS}\t{new}\n"
    lines = text.splitlines()
    for number, line in enumerate(lines):
        fields, mark, comment = line.partition("#")
        address, *names = fields.split() or [""]
        if address == _OWN_ADDRESS:
            renamed = [_rename(name, old, new) for name in names]
            if new not in renamed:  # the line held names of an earlier life
                renamed = [new]
            lines[number] = "\t".join([address, " ".join(renamed)]) + (f" {mark}{comment}" if mark else "")
            break
    else:
        lines.append(f"{_OWN_ADDRESS}\t{new}")
    return "\n".join(lines) + "\n"


def _rename(name: str, old: str, new: str) -> str:
    if name == old:
        return new
    if old and name.startswith(old + "."):
        return new + name[len(old) :]
    return name


ITEM = Hostname
