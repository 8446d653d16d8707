"""Where a clone's evidence is kept, and who can read it.

    states/ID/evidence/UUID.json      the book of a snapshot's family on this host, by which new clones are judged; it goes
                                      with the state, when no server of this host comes from it any more
    UUID/evidence.json                signed, with those it was compared with: `liveclone verify FILE --key PEM` checks it
    instances_path/liveclone/host.key what this host signs with
    an event of the server's action   `liveclone_identity`: its result, a sentence, is what the owner sees in any case;
                                      `details` has the evidence, which Nova's policy shows to administrators alone,
                                      unless the operator says otherwise

An event, because nobody but Nova writes one, it outlives the server, and the owner reads it by Nova's own API. Metadata the
owner could write too; system metadata is not shown to him.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from nova import context as nova_context
from nova import exception, objects
from oslo_log import log as logging

from liveclone.host import files
from liveclone.identity import verify
from liveclone.identity.evidence import EvidenceBook
from liveclone.identity.signature import HostKey
from liveclone.model import base
from liveclone.model.identity import Evidence, ItemStatus
from liveclone_nova import conf
from liveclone_nova.conf import CONF
from liveclone_nova.seal import Identity

LOG = logging.getLogger(__name__)

EVENT = "liveclone_identity"
FILE = "evidence.json"
_RESULT_CHARACTERS = 255  # of the column


def open_book(folder: Path, identity: Identity) -> EvidenceBook:
    """Return the book of a state in this folder, with its source in it: clones must differ from what it became, too."""
    common = conf.make_folder("states").parent
    host_key = HostKey(common / "host.key", common / "host.key.lock")
    book = EvidenceBook(folder, folder / "evidence.lock", host_key)
    if book.load(identity.renewed.machine) is None:
        book.record(identity.renewed)
    return book


def keep(book: EvidenceBook, folder: Path, evidence: Evidence) -> None:
    """Write the server's proof into its folder."""
    files.write_atomic(folder / FILE, base.encode(book.export(evidence.machine)))


def tell(
    context: nova_context.RequestContext,
    instance: objects.Instance,
    result: str,
    evidence: Evidence | None = None,
) -> None:
    """Make an event of the action by which the server is made, for those who read no logs."""
    now = datetime.now(UTC)
    event = objects.InstanceActionEvent(
        context,
        event=EVENT,
        host=CONF.host,
        start_time=evidence.at if evidence else now,
        finish_time=now,
        result=_cut(result),
        details=base.encode(evidence).decode() if evidence else None,
    )
    try:
        event.create(instance.uuid, context.request_id)
    except exception.InstanceActionNotFound:
        LOG.warning("There is no action on record for its evidence", instance=instance)


def summarize(evidence: Evidence) -> str:
    """Return what came of it, in a sentence that begins as the results of Nova's events do."""
    if evidence.findings:
        reasons = "; ".join(f"{found.item}: {found.reason}" for found in evidence.findings)
        return f"Error: not verified: {reasons}"
    new = [item.item for item in evidence.items if item.required and item.status is ItemStatus.CHANGED]
    cards = " and its cards" if any(item.item == verify.NETWORK for item in evidence.items) else ""
    others = len(evidence.compared_with)
    return f"Success: verified{cards}; unlike in the snapshot and {others} others: {', '.join(new)}"


def _cut(text: str) -> str:
    return text if len(text) <= _RESULT_CHARACTERS else f"{text[: _RESULT_CHARACTERS - 3]}..."
