"""XML as it is written: texts of others in, elements out, and back.

libvirt's descriptions come from files and networks, so they are untrusted input; and what is not understood must come
out again as it went in. The parser of `xml.etree` falls short of both: it expands entities, and gives namespaces new
prefixes. So expat is driven here without any notion of namespaces, which leaves `qemu:arg` and `xmlns:qemu` plain names, and

    <!DOCTYPE          refused: libvirt writes none, and all attacks by entities need one
    depth and length   bounded: nothing that libvirt would take comes near
    comments           dropped
    blanks between     dropped and made anew, two to a level, as libvirt does

What an element means is not looked at. Text that is blanks only, in an element without children, is kept.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from xml.etree.ElementTree import Element, TreeBuilder, indent, tostring
from xml.parsers import expat

from ..errors import Corrupt, Refused

_MAX_TEXT = 16 << 20  # as in a save image's header; libvirt takes 4 MiB by its protocol
_MAX_DEPTH = 200  # libxml2, which libvirt reads with, stops at 256
_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, 2.2


class _Builder:
    """Receives expat's events."""

    def __init__(self) -> None:
        self.tree = TreeBuilder()
        self._depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError(f"elements within elements, more than {_MAX_DEPTH} deep")
        self.tree.start(tag, attributes)

    def end(self, tag: str) -> None:
        self._depth -= 1
        self.tree.end(tag)

    def doctype(self, *_: object) -> None:
        raise ValueError("it has a DOCTYPE, which libvirt never writes")


def parse(text: str, root: str, code: str) -> Element:
    """Return the element `root` that `text` is.

    Raises:
        Corrupt: with this `code`: it is no XML, has a DOCTYPE, is far too large, or is another element.
    """
    element = parse_any(text, code, root)
    if element.tag != root or "xmlns" in element.attrib:
        raise bad(root, f"it is a <{element.tag}>, not a <{root}>", code)
    return element


def parse_any(text: str, code: str, what: str = "element") -> Element:
    """Return the element that `text` is, whatever its name; raises as `parse`."""
    try:
        return _build(text)
    except expat.ExpatError as error:
        raise bad(what, f"line {error.lineno}: {expat.errors.messages[error.code]}", code) from error
    except ValueError as error:  # UnicodeEncodeError is one: a lone surrogate
        raise bad(what, str(error), code) from error


def render(element: Element) -> str:
    """Return `element` as text, indented, with a newline at its end. The element is left as it is.

    Raises:
        Refused: a text or attribute holds a character that XML cannot ("bad-text").
    """
    element = copy.deepcopy(element)
    for node in element.iter():
        for value in (node.text or "", *node.attrib.values()):
            if _FORBIDDEN.search(value):
                raise Refused(
                    f"{value!r} cannot stand in XML",
                    code="bad-text",
                    tried=f"writing the <{node.tag}> of a domain",
                    seen=repr(_FORBIDDEN.findall(value)[0]),
                    next_step="use a name or path without control characters",
                )
    element.tail = None
    indent(element)
    return tostring(element, encoding="unicode") + "\n"


def bad(root: str, seen: str, code: str) -> Corrupt:
    """Return the error for a `root` element that says what was `seen`."""
    return Corrupt(
        f"libvirt's <{root}> cannot be read: {seen}",
        code=code,
        tried="reading a domain's XML",
        on=f"<{root}>",
        seen=seen,
        next_step="virsh dumpxml DOMAIN | virt-xml-validate -",
    )


def bad_domain(seen: str) -> Corrupt:
    """Return the error for a domain's XML that says what was `seen`."""
    return bad("domain", seen, "bad-domain-xml")


def need(text: str, where: str) -> str:
    """Return `text`, which every domain has; raises `bad_domain` where it is empty."""
    if not text:
        raise bad_domain(f"it has no {where}")
    return text


def remove(parent: Element, unwanted: Callable[[Element], bool]) -> None:
    """Take the children of `parent` out that are `unwanted`."""
    for child in [child for child in parent if unwanted(child)]:
        parent.remove(child)


def remove_all(parent: Element, *tags: str) -> None:
    """Take the children of `parent` out that have one of these `tags`."""
    remove(parent, lambda child: child.tag in tags)


def text_of(parent: Element, path: str) -> str:
    """Return the text at `path` without blanks around it; empty where there is none."""
    return (parent.findtext(path) or "").strip()


def attribute_of(parent: Element, path: str, name: str) -> str:
    """Return the attribute `name` of the element at `path`; empty where there is none."""
    found = parent.find(path)
    return "" if found is None else found.get(name, "")


def namespace_of(element: Element, root: Element) -> str:
    """Return the namespace that a prefix of this child of `root` (or the element itself) stands for; empty without."""
    prefix, colon, _ = element.tag.rpartition(":")
    declaration = f"xmlns:{prefix}" if colon else "xmlns"
    return element.get(declaration) or root.get(declaration) or ""


def _build(text: str) -> Element:
    if len(text) > _MAX_TEXT:
        raise ValueError(f"{len(text)} characters, where {_MAX_TEXT} are far too many")
    builder = _Builder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.tree.data
    parser.StartDoctypeDeclHandler = builder.doctype
    parser.Parse(text, True)
    root = builder.tree.close()
    for node in root.iter():
        if not (node.tail or "").strip():
            node.tail = None
        if len(node) and not (node.text or "").strip():
            node.text = None
    return root
