"""Where this host gets Debian from, so that guests are built from the same mirror and no address is written into the code.

    /etc/apt/sources.list, sources.list.d/*.list      deb [signed-by=KEY] URI SUITE COMPONENT...
    /etc/apt/sources.list.d/*.sources                 Types: URIs: Suites: Components: Signed-By:   (deb822)
              │
              └─ the entry that carries `main` of the release this host runs, and the one of its security updates

A guest's suite may be another than the host's: mirrors carry them all. Sources: sources.list(5), deb822(5), os-release(5).
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import Unsupported

_KEYRING = Path("usr/share/keyrings/debian-archive-keyring.gpg")  # of the package debian-archive-keyring
# Names that move from release to release; a host may follow one of them instead of its code name.
_ALIASES = {"stable", "oldstable", "testing", "unstable", "sid"}
_WITHOUT_SECURITY = {"unstable", "sid", "experimental"}
_REMOTE = ("http", "https", "ftp")


@dataclass(frozen=True)
class Source:
    """One entry. `signed_by` is a path, or the key itself as an armored block, or empty (apt's own trust)."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""

    def render(self, suite: str) -> str:
        """Return this source as a deb822 stanza for `suite`, component main."""
        lines = ["Types: deb", f"URIs: {self.uri}", f"Suites: {suite}", "Components: main"]
        if "\n" in self.signed_by:
            block = (f" {line or '.'}" for line in self.signed_by.strip().splitlines())
            lines += ["Signed-By:", *block]
        elif self.signed_by:
            lines.append(f"Signed-By: {self.signed_by}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Mirror:
    """Where Debian comes from: the archive, and its security updates where this host has them."""

    archive: Source
    security: Source | None = None

    @property
    def needs_certificates(self) -> bool:
        """Tell whether a guest needs ca-certificates to use it."""
        sources = [self.archive, self.security] if self.security else [self.archive]
        return any(source.uri.startswith("https:") for source in sources)

    def render(self, suite: str) -> str:
        """Return the sources of a guest of `suite`, as a deb822 file."""
        stanzas = [self.archive.render(suite)]
        if self.security and suite not in _WITHOUT_SECURITY:
            stanzas.append(self.security.render(f"{suite}-security"))
        return "\n".join(stanzas)


def find_mirror(root: Path = Path("/")) -> Mirror:
    """Return where this host gets its own release of Debian from.

    Args:
        root: the file system to look in (tests give another).

    Raises:
        Unsupported: this is not Debian, or no entry fits (code "no-mirror"); the remedy is to name a mirror.
    """
    release = _read_release(root)
    if release.get("ID") != "debian":
        raise _no_mirror(f"this host is {release.get('PRETTY_NAME') or 'not Debian'}", root)
    suites = {release.get("VERSION_CODENAME", ""), *_ALIASES} - {""}
    sources = [source for source in read_sources(root) if "main" in source.components]
    archive = next((source for source in sources if suites & set(source.suites)), None)
    if archive is None:
        raise _no_mirror(f"no entry with {'/'.join(sorted(suites))} main among {len(sources)}", root)
    wanted = {f"{suite}-security" for suite in suites} | {f"{suite}/updates" for suite in suites}
    security = next((source for source in sources if wanted & set(source.suites)), None)
    return Mirror(_trusted(archive, root), _trusted(security, root) if security else None)


def use_mirror(uri: str, root: Path = Path("/")) -> Mirror:
    """Return the mirror that a user named, trusted by Debian's keyring where this host has it."""
    return Mirror(_trusted(Source(uri, (), ("main",)), root))


def read_sources(root: Path = Path("/")) -> list[Source]:
    """Return every enabled entry for binary packages that is reached over the network, in apt's order."""
    folder = root / "etc/apt"
    parts = sorted((folder / "sources.list.d").glob("*"))
    found: list[Source] = []
    for path in [folder / "sources.list", *parts]:
        parse = {".list": parse_lines, ".sources": parse_stanzas}.get(path.suffix)
        if parse is not None and path.is_file():
            found += parse(path.read_text(errors="replace"))
    return [place for source in found for place in _resolve(source, root)]


def parse_lines(text: str) -> list[Source]:
    """Return the sources of a file in the one-line format; lines that are no such entry are passed over."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(
            r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+\S+)*)\s*", line.split("#")[0]
        )
        if match:
            options = dict(pair.partition("=")[::2] for pair in (match[1] or "").split())
            found.append(Source(match[2], (match[3],), tuple(match[4].split()), options.get("signed-by", "")))
    return found


def parse_stanzas(text: str) -> list[Source]:
    """Return the sources of a deb822 file; one for each URI."""
    found = []
    for stanza in _split_stanzas(text):
        if stanza.get("enabled", "yes").lower() in ("no", "false", "without", "off", "disable"):
            continue
        if "deb" not in stanza.get("types", "").split():
            continue
        suites, components = (
            tuple(stanza.get("suites", "").split()),
            tuple(stanza.get("components", "").split()),
        )
        found += [
            Source(uri, suites, components, stanza.get("signed-by", ""))
            for uri in stanza.get("uris", "").split()
        ]
    return found


def _split_stanzas(text: str) -> Iterator[dict[str, str]]:
    stanza: dict[str, str] = {}
    name = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if stanza:
                yield stanza
            stanza, name = {}, ""
        elif line[0] in " \t":
            if name:
                more = line[1:].rstrip()
                stanza[name] += "\n" + ("" if more.strip() == "." else more)
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            stanza[name] = value.strip()


def _resolve(source: Source, root: Path) -> Iterator[Source]:
    """Yield the source with an address that can be reached from a guest; cdrom: and file: cannot.

    Debian's cloud images say mirror+file:PATH, a file that lists the real addresses, one a line.
    """
    method, _, path = source.uri.partition(":")
    if method in _REMOTE:
        yield source
    elif method == "mirror+file":
        listing = root / path.lstrip("/")
        lines = listing.read_text(errors="replace").split("\n") if listing.is_file() else []
        for line in lines:
            uri = line.split("#")[0].split()
            if uri and urllib.parse.urlsplit(uri[0]).scheme in _REMOTE:
                yield Source(uri[0], source.suites, source.components, source.signed_by)
                return


def _trusted(source: Source, root: Path) -> Source:
    """Return the source with a keyring named, if there is one; `apt` alone would use its own trusted.gpg.d."""
    if source.signed_by or not (root / _KEYRING).exists():
        return source
    return Source(source.uri, source.suites, source.components, os.fspath(Path("/") / _KEYRING))


def _read_release(root: Path) -> dict[str, str]:
    for name in ("etc/os-release", "usr/lib/os-release"):
        path = root / name
        if path.is_file():
            pairs = (line.partition("=") for line in path.read_text(errors="replace").splitlines())
            return {name: value.strip("\"'") for name, _, value in pairs}
    return {}


def _no_mirror(seen: str, root: Path) -> Unsupported:
    return Unsupported(
        "no Debian mirror is known here",
        code="no-mirror",
        tried="reading apt's sources",
        on=str(root / "etc/apt"),
        seen=seen,
        next_step="name one: --mirror URI",
    )
