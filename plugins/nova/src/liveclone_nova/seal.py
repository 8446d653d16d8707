"""What says that this cloud itself made a live snapshot's state: an HMAC over its description, under a key of the cloud's.

    state image     head, 64 KiB: a line with the seal, the description as JSON, blanks
                    device state: a save image of libvirt's, without pages
                    memory image, compressed by zstd; its holes are zeros

Anybody who may upload an image, or write the properties of one, may offer a "state". So a state is read piece by piece: the
head, whose seal must fit before a word of it is believed; then the parts, which must be what the head says, to the byte,
before zstd or QEMU sees them. The description names the two images that belong together by their ids, so that neither
goes with another one, and the disk by its digest.

So what a clone's identity is compared with is this cloud's own word too, though the clone is made on another host.
"""

from __future__ import annotations

import datetime
import hmac
import re
from collections.abc import Sequence

from liveclone.errors import Corrupt, Refused
from liveclone.model import base
from liveclone.model.base import Value
from liveclone.model.identity import Evidence, ItemReport

HEAD_BYTES = 65536
DIGEST = "sha512"  # Glance's own, so that what it says of an image can be compared
_MARK = b"liveclone-nova-state 2"
_LINE = re.compile(rb"liveclone-nova-state 2 ([0-9a-f]{64}) ([0-9]{5})\n")


class Part(Value, frozen=True, kw_only=True):
    """Some bytes; `digest` is their SHA-512 in hex."""

    size_bytes: int
    digest: str


class Identity(Value, frozen=True, kw_only=True):
    """What a clone's evidence is compared with.

    Args:
        key: of the digests, in hex. Who has the state image has it, and the memory in which the values themselves are.
        items: the source's at the capture, digests only.
        renewed: the source's evidence after the capture: its own new generation and randomness.
        addresses: the source's, those that its guest showed.
    """

    key: str
    items: tuple[ItemReport, ...]
    renewed: Evidence
    addresses: tuple[str, ...] = ()


class Description(Value, frozen=True, kw_only=True):
    """What belongs together, and where it may run.

    Args:
        disk_image, state_image: ids in Glance.
        disk: as it is in Glance. device_state, memory: as they stand in the state image.
        ram_bytes: the length of the memory image.
        memory_mb, vcpus: of the source's flavor. disk_bytes: the disk as the guest sees it.
        kind: "kvm", or "tcg" for emulation.
        hypervisor: "libvirt 11.3.0, qemu 10.0.2".
        cpu: the guest's processor as libvirt has it; host_cpu: the model of the host's.
        source, project: ids of the server and its project.
        identity: None where the guest had no agent that answered; `no_identity` says why.
    """

    disk_image: str
    state_image: str
    disk: Part
    device_state: Part
    memory: Part
    ram_bytes: int
    memory_mb: int
    vcpus: int
    disk_bytes: int
    kind: str
    hypervisor: str
    machine_type: str
    cpu: str
    host_cpu: str
    source: str
    project: str
    taken_at: datetime.datetime
    identity: Identity | None = None
    no_identity: str = ""

    @property
    def size_bytes(self) -> int:
        """What the whole state image must have."""
        return HEAD_BYTES + self.device_state.size_bytes + self.memory.size_bytes


def render_head(description: Description, key: bytes) -> bytes:
    """Return the sealed head of a state image.

    Raises:
        Refused: it is too long, as only what the guest's agent reports can make it (code "too-long").
    """
    text = base.encode(description)
    head = b"%s %s %05d\n" % (_MARK, _seal(text, key), len(text)) + text
    if len(head) > HEAD_BYTES:
        raise Refused(
            f"what the guest's agent reports of its identity is too long: {len(text)} bytes",
            code="too-long",
            tried="describing the state of a live snapshot",
            on=description.source,
            seen=f"{HEAD_BYTES} bytes are its place",
            source_state="running, as before",
            next_step="look at the agent in the guest: it is none of ours",
        )
    return head.ljust(HEAD_BYTES)


def parse_head(head: bytes, keys: Sequence[bytes]) -> Description:
    """Return what the first HEAD_BYTES of a state image say, if the seal is of one of these keys.

    Raises:
        Corrupt: it is no head ("not-a-state"), or not sealed by this cloud, or changed since ("bad-seal").
    """
    line = _LINE.match(head)
    if line is None or len(head) != HEAD_BYTES or line.end() + int(line[2]) > HEAD_BYTES:
        raise corrupt("it is none of a live snapshot", "not-a-state")
    text = head[line.end() : line.end() + int(line[2])]
    if not any(hmac.compare_digest(_seal(text, key), line[1]) for key in keys):
        raise corrupt("it does not have the seal of this cloud, or was changed since", "bad-seal")
    return base.decode(text, Description, "the description of a state")


def corrupt(seen: str, code: str) -> Corrupt:
    """Return the error for a state that is not to be used."""
    return Corrupt(
        f"the state image cannot be used: {seen}",
        code=code,
        tried="reading the state of a live snapshot",
        seen=seen,
        next_step="take a new live snapshot",
    )


def _seal(text: bytes, key: bytes) -> bytes:
    return hmac.digest(key, _MARK + b"\0" + text, "sha256").hex().encode()
