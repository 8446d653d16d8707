"""Work that is under way or waits for its time: each clone would do it too, at the same moment."""

from __future__ import annotations

from . import Check, Guest, finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import Finding

_UNDER_WAY = (
    "apt",
    "apt-get",
    "aptitude",
    "dpkg",
    "dnf",
    "yum",
    "rpm",
    "zypper",
    "pacman",
    "rsync",
    "mysqldump",
    "pg_dump",
)


class Jobs(Check):
    name = "jobs"

    def look(self, guest: Guest) -> Iterator[Finding]:
        for program in guest.programs:
            if program.name in _UNDER_WAY:
                yield finding(
                    str(program),
                    f"is at work for {program.age_s:.0f} s",
                    "refuse",
                    "wait until it has ended: each clone would go on with half of the work",
                )
        for path in guest.find("/var/spool/cron/atjobs/a*", "/var/spool/at/a*"):
            yield finding(
                path,
                "a job of at(1)",
                "accept",
                "each clone does it too; atrm it in a `cloned` hook if it must not",
            )
        for path in guest.find("/var/spool/cron/crontabs/*", "/var/spool/cron/*"):
            if guest.is_file(path) and guest.has_content(path):
                yield finding(
                    path, "a user's crontab", "accept", "each clone does this too, at the same time"
                )


CHECK = Jobs
