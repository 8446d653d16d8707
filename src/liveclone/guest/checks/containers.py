"""Containers inside: each has names, keys and random state of its own that our agent does not look into."""

from __future__ import annotations

import re

from . import Check, Guest, finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import Finding

_CONTAINER = re.compile(
    r"(?:docker|libpod|crio|cri-containerd)[-/][0-9a-f]{6,}"
    r"|lxc\.payload[./][^/]+|systemd-nspawn@[^/]+|machine-[^/]+\.scope"
)


class Containers(Check):
    name = "containers"

    def look(self, guest: Guest) -> Iterator[Finding]:
        seen: dict[str, list[str]] = {}
        for program in guest.programs:
            match = _CONTAINER.search(program.cgroup)
            if match:
                seen.setdefault(match[0], []).append(program.name)
        for name, programs in seen.items():
            yield finding(
                name[:60],
                f"{len(programs)} processes: {', '.join(sorted(set(programs)))[:80]}",
                "restart",
                "start it anew in each clone with a `cloned` hook: nothing inside it is renewed",
            )


CHECK = Containers
