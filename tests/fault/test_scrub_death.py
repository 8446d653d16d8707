"""A snapshot that scrubs is cut short, on a real machine: the secrets that it took out are in the guest again.

What is killed is our process, the agent, or QEMU. Only those points are here that differ in what there is to undo.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from liveclone.engine import scrub, snapshot
from liveclone.engine.snapshot_plan import Scrubbing
from liveclone.model.machine import Machine
from liveclone.model.snapshot import CaptureMethod
from tests.fault import deaths
from tests.fault.conftest import Sources
from tests.fault.deaths import Death, Outcome
from tests.fault.test_qemu_death import check_stopped, killing, of
from tests.machines import Lab, Operation

TOKEN = "/srv/token"
# Free blocks are what takes a scrub its time: most are taken by a file that is never written.
PLANT = f"""
mkdir -p /root/.ssh
echo ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxpdmVjbG9uZSB0ZXN0IGtleSBsaXZlY2xvbmUgdGVzdA== me >/root/.ssh/authorized_keys
head -c 32 /dev/urandom | base64 >{TOKEN}
chmod 640 {TOKEN}
fallocate -l $(($(stat -f -c '%f * %S' /) - (48 << 20))) /var/lib/full
sync
"""
SECRETS = f"{TOKEN} /root/.ssh/authorized_keys /etc/ssh/ssh_host_*"
CLUSTERS = "/sys/fs/ext4/vda/reserved_clusters"
SETTINGS = f"/proc/sys/vm/min_free_kbytes /proc/sys/vm/watermark_scale_factor {CLUSTERS}"
STATE = f"stat -c '%n %a %u %y' {SECRETS}; sha256sum {SECRETS}; cat {SETTINGS}; ls /run/liveclone/*.json 2>&1 || :"
AGENT = "pgrep -fo /usr/lib/liveclone/agent.pyz"
TAKEN_OUT = ("scrub.removed", "scrub.clean", "snapshot.committed")


class Keeper:
    """A machine that keeps secrets; one for all tests here."""

    def __init__(self, lab: Lab, sources: Sources) -> None:
        taken = lab.snapshot(sources.any())
        self._lab = lab
        self._machine = lab.clone(taken)
        lab.snapshots_sealed()
        lab.remove_snapshot(taken)
        lab.shell(self._machine, PLANT)
        self._before = lab.shell(self._machine, STATE)

    @property
    def machine(self) -> Machine:
        return self._lab.reload(self._machine)

    def has_token(self) -> bool:
        """Look without asking the agent."""
        return "is-there" in self._lab.console(self.machine, f"[ -e {TOKEN} ] && echo is'-'there")

    def check(self) -> None:
        """Fail unless all is in the guest as it was, and nothing of it with us."""
        assert self._lab.shell(self.machine, STATE) == self._before
        assert not scrub.is_due(self._lab.ctx, self.machine)

    def request(self) -> snapshot.Request:
        scrubbing = Scrubbing(paths=(TOKEN,))
        return snapshot.Request(machine=self.machine.id, method=CaptureMethod.BACKGROUND, scrub=scrubbing)

    def operation(self, lab: Lab, **options: str | list[str]) -> Operation:
        return Operation(
            lab,
            "snapshot",
            machine=self.machine.id,
            method="background",
            scrub=[TOKEN],
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture(scope="module")
def keeper(lab: Lab, sources: Sources) -> Iterator[Keeper]:
    keeper = Keeper(lab, sources)
    yield keeper
    lab.remove(keeper.machine)


@pytest.mark.parametrize(
    "point", ["scrub.kept", "scrub.removed", "scrub.clean", "snapshot.committed", "scrub.back"]
)
def test_our_process(lab: Lab, keeper: Keeper, point: str) -> None:
    with keeper.operation(lab, kill_at=point) as operation:
        assert operation.result() == {"killed": True}
    assert keeper.has_token() == (point not in TAKEN_OUT)
    assert lab.repair() == [keeper.machine.name]
    assert lab.ctx.snapshots.list() == []
    keeper.check()


@pytest.mark.parametrize("who", ["ours", "ours and the agent"])
def test_while_it_cleans(lab: Lab, keeper: Keeper, who: str) -> None:
    wait = f"until read n <{CLUSTERS}; [ $n = 0 ]; do :; done"
    with keeper.operation(lab, stops=["scrub.removed"]) as operation:
        operation.reach("scrub.removed")
        operation.go_on("scrub.removed")
        lab.console(keeper.machine, wait + (f"; kill -9 $({AGENT})" if "agent" in who else ""))
        operation.kill()
    assert not keeper.has_token()
    assert lab.repair() == [keeper.machine.name]
    keeper.check()


@of(deaths.SCRUBBING)
def test_qemu(lab: Lab, keeper: Keeper, death: Death) -> None:
    with killing(lab, death.point, lambda: keeper.machine.process) as errors:
        lab.wait(snapshot.take(lab.ctx, keeper.request()))
    assert bool(errors) == (death.outcome is Outcome.STOPPED)
    check_stopped(lab, keeper.machine, errors[0] if errors else None)
    lab.start(keeper.machine)
    keeper.check()
