"""Names for the shell's completion, most of them read off the home folder. Whatever goes wrong: no names, no noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path

_DRIVERS = (("qemu", "QEMU processes of liveclone's own"), ("libvirt", "domains of libvirt"))
_URIS = (("qemu:///system", "this host's libvirt"), ("qemu:///session", "this user's own"))


def machines(incomplete: str) -> list[tuple[str, str]]:
    """Return the machines, with what they are of."""
    return [
        (name, f"clone of {manifest['clone_of']}" if manifest.get("clone_of") else str(manifest.get("image")))
        for name, manifest in _named("machines", incomplete)
    ]


def snapshots(incomplete: str) -> list[tuple[str, str]]:
    """Return the snapshots, with their sources."""
    return [(name, f"of {manifest.get('source_name')}") for name, manifest in _named("snapshots", incomplete)]


def images(incomplete: str) -> list[tuple[str, str]]:
    """Return the images, with their suites."""
    return [(name, str(manifest.get("suite") or "")) for name, manifest in _named("images", incomplete)]


def machines_and_snapshots(incomplete: str) -> list[tuple[str, str]]:
    """Return what `show` takes."""
    return machines(incomplete) + snapshots(incomplete)


def copy_ends(incomplete: str) -> list[tuple[str, str]]:
    """Return machines as the beginning of MACHINE:PATH."""
    return [(f"{name}:", words) for name, words in machines(incomplete)]


def policies(incomplete: str) -> list[tuple[str, str]]:
    """Return the shipped policies, with what each is for."""
    folder = Path(__file__).parent.parent / "identity" / "policies"
    return [
        (path.stem, path.read_text().partition("\n")[0].lstrip("# "))
        for path in sorted(folder.glob("*.toml"))
        if path.stem.startswith(incomplete)
    ]


def drivers(incomplete: str) -> list[tuple[str, str]]:
    """Return what --driver takes."""
    return [one for one in _DRIVERS if one[0].startswith(incomplete)]


def uris(incomplete: str) -> list[tuple[str, str]]:
    """Return what --connect mostly takes."""
    return [one for one in _URIS if one[0].startswith(incomplete)]


def rejoin(environment: MutableMapping[str, str]) -> None:
    """Put together again what bash takes apart at ":" and "=" (COMP_WORDBREAKS), before the word that is completed.

    Otherwise the rest of --connect qemu:///system would be taken for the verb. Other shells give the line as it is.
    """
    words, before = environment.get("COMP_WORDS", "").split("\n"), environment.get("COMP_CWORD", "")
    if not before.isdigit() or len(words) <= int(before):
        return
    joined: list[str] = []
    glue = False
    for word in words[: int(before)]:
        if word == "=" and joined and joined[-1].startswith("--"):
            continue  # --driver = libvirt is understood as --driver libvirt
        if glue or (word in (":", "=") and joined):
            joined[-1] += word
        else:
            joined.append(word)
        glue = word in (":", "=")
    environment["COMP_WORDS"] = "\n".join(joined + words[int(before) :])
    environment["COMP_CWORD"] = str(len(joined))


def _named(kind: str, incomplete: str) -> Iterator[tuple[str, dict[str, object]]]:
    try:
        paths = sorted((_home() / kind).glob("[!.]*/manifest.json"))
    except Exception:  # noqa: BLE001 - a bad setting is for the command to report
        return
    for path in paths:
        try:
            manifest = json.loads(path.read_bytes())
            name = str(manifest["name"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if name.startswith(incomplete):
            yield name, manifest


def _home() -> Path:
    from ..engine.settings import read

    return read().home
