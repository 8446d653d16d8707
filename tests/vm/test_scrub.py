"""A scrubbed snapshot of a real guest: secrets in six places are in a plain snapshot, and not in a scrubbed one."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator

import pytest

from liveclone.engine import search, snapshot
from liveclone.engine.snapshot_plan import Scrubbing
from liveclone.formats.needles import Secret
from liveclone.model.machine import Machine
from liveclone.model.snapshot import Snapshot
from tests.machines import Lab

PLACES = ("file", "deleted file", "heap", "environment", "page cache", "freed memory")
NAMES = {place: place.replace(" ", "-") for place in PLACES}

# Reads its secret when it starts, and keeps it; systemd gives it another one in its environment.
KEEPER = """\
[Service]
ExecStart=/usr/bin/python3 -c "import signal; kept = open('/srv/secrets/heap', 'rb').read() * 9; signal.pause()"
EnvironmentFile=/srv/secrets/environment
"""
PLANT = """
mkdir -p /srv/secrets /root/.ssh
chmod 700 /srv/secrets
cat > /run/systemd/system/keeper.service <<'END'
{keeper}END
{files}
printf TOKEN= | cat - /srv/secrets/environment.raw > /srv/secrets/environment
mv /srv/secrets/deleted-file /srv/deleted-file
mv /srv/secrets/freed-memory /run/freed-memory
echo ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxpdmVjbG9uZSB0ZXN0IGtleSBsaXZlY2xvbmUgdGVzdA== me > /root/.ssh/authorized_keys
chmod 640 /srv/secrets/file
sync
rm /srv/deleted-file
cat /srv/secrets/page-cache > /dev/null
python3 -c "x = open('/run/freed-memory', 'rb').read() * 100000"
rm /run/freed-memory
systemctl daemon-reload
systemctl restart keeper.service
sync
"""
STATE = """
cd /srv/secrets; stat -c '%n %a %u %Y' *; sha256sum * /root/.ssh/authorized_keys /etc/ssh/ssh_host_*
systemctl is-active keeper.service ssh.service
"""


@pytest.fixture(scope="module")
def secrets() -> dict[str, bytes]:
    return {place: os.urandom(32) for place in PLACES}


@pytest.fixture(scope="module")
def keeper(lab: Lab, secrets: dict[str, bytes]) -> Iterator[Machine]:
    """A machine of this file's own that keeps secrets."""
    machine = lab.boot("keeper", vcpus=2)  # each has lists of free pages of its own
    lab.shell(machine, "systemctl is-system-running --wait || :")
    plant(lab, machine, secrets)
    yield machine
    lab.remove(machine)


def plant(lab: Lab, machine: Machine, secrets: dict[str, bytes]) -> None:
    lines = []
    for place, value in secrets.items():
        text = (
            base64.b64encode(value).decode()
            if place != "environment"
            else base64.b64encode(value.hex().encode()).decode()
        )
        name = "environment.raw" if place == "environment" else NAMES[place]
        lines.append(f"echo {text} | base64 -d > /srv/secrets/{name}")
    lab.shell(machine, PLANT.format(keeper=KEEPER, files="\n".join(lines)))


def find(lab: Lab, taken: Snapshot, secrets: dict[str, bytes]) -> dict[str, set[str]]:
    """Return in which parts each secret was found."""
    needles = [Secret(place, value) for place, value in secrets.items()]
    found = lab.wait(search.prove(lab.ctx, taken.id, needles)).found
    return {place: {hit.part for hit in found if hit.secret == place} for place in secrets}


def test_six_secrets_are_gone_with_a_scrub_and_there_without(
    lab: Lab, keeper: Machine, secrets: dict[str, bytes]
) -> None:
    before = lab.shell(keeper, STATE)
    request = snapshot.Request(
        machine=keeper.id,
        name="clean",
        scrub=Scrubbing(paths=("/srv/secrets",), units=("keeper.service",)),
    )
    clean = lab.wait(snapshot.take(lab.ctx, request))
    lab.shell(keeper, "while ! systemctl is-active -q keeper.service ssh.service; do sleep 0.1; done")
    assert lab.shell(keeper, STATE) == before, "the source is not what it was"
    found = find(lab, clean, secrets)
    assert found == {place: set() for place in PLACES}
    assert clean.scrub is not None
    assert clean.scrub.found == ()
    search.check_public(clean)

    clone = lab.clone(clean)
    assert lab.shell(clone, "ls -A /srv/secrets; cat /root/.ssh/authorized_keys 2>/dev/null || :") == ""
    keys = lab.shell(clone, "cat /etc/ssh/ssh_host_*_key.pub")
    assert keys
    assert keys != lab.shell(keeper, "cat /etc/ssh/ssh_host_*_key.pub")
    lab.shell(clone, "while ! systemctl is-active -q ssh.service; do sleep 0.1; done")
    lab.remove(clone)

    plant(lab, keeper, secrets)
    plain = lab.snapshot(keeper, "plain")
    found = find(lab, plain, secrets)
    assert [place for place in PLACES if not found[place]] == []
    lab.remove_snapshot(plain)
    lab.remove_snapshot(clean)
