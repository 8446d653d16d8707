"""Tell whether the pins are those that pyproject.toml and dev.in ask for; exit 1 and say so if not.

Run by `./dev check`, without a network: a requirement needs a pin that it allows, each pin a hash, run.txt is a
part of dev.txt, what Nova's pins share with dev.txt is the same there, and none names a package index. How to make them
anew: requirements/README.md.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
NOVA = HERE.parent / "plugins" / "nova"
ADVICE = "make the pins anew: requirements/README.md"


def read_pins(file: Path) -> dict[str, str]:
    """Return the version of each pinned package by its canonical name."""
    pins: dict[str, str] = {}
    for block in re.split(r"\n(?=\S)", file.read_text()):
        if block.startswith("#") or not block.strip():
            continue
        match = re.match(r"([\w.-]+)==([^\s;\\]+)", block)
        if match is None or "--hash=sha256:" not in block:
            raise SystemExit(f"{file.name}: no pin with a hash: {block.splitlines()[0]}")
        pins[canonicalize_name(match[1])] = match[2]
    return pins


def read_input(file: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def find_faults(wanted: list[Requirement], pins: dict[str, str], file: str) -> list[str]:
    faults = []
    for requirement in wanted:
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None:
            faults.append(f"{file}: {requirement.name} has no pin")
        elif not requirement.specifier.contains(pin, prereleases=True):
            faults.append(f"{file}: {requirement.name}=={pin} is not {requirement.specifier}")
    return faults


def main() -> int:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
    product = [Requirement(text) for text in project["project"]["dependencies"]]
    build = [Requirement(text) for text in project["build-system"]["requires"]]
    run, dev = read_pins(HERE / "run.txt"), read_pins(HERE / "dev.txt")

    faults = find_faults(product, run, "run.txt")
    faults += find_faults([*product, *build, *read_input(HERE / "dev.in")], dev, "dev.txt")
    limits = [limit for limit in read_input(HERE / "limits.in") if canonicalize_name(limit.name) in dev]
    faults += find_faults(limits, dev, "dev.txt")
    faults += [f"dev.txt: not the {name} of run.txt" for name in run if dev.get(name) != run[name]]

    nova = read_pins(NOVA / "requirements.txt")
    faults += find_faults([*product, *read_input(NOVA / "requirements.in")], nova, "plugins/nova")
    faults += [
        f"plugins/nova: not the {name} of dev.txt" for name in nova if dev.get(name, nova[name]) != nova[name]
    ]

    faults += find_faults(
        read_input(NOVA / "source.in"), read_pins(NOVA / "source.txt"), "plugins/nova/source.txt"
    )

    for file in (HERE / "run.txt", HERE / "dev.txt", NOVA / "requirements.txt", NOVA / "source.txt"):
        if re.search(r"^\s*-(-index-url|-extra-index-url|-find-links|i|f)\b|://", file.read_text(), re.M):
            faults.append(f"{file.relative_to(HERE.parent)}: names a package index")
    for fault in faults:
        print(fault)
    if faults:
        print(ADVICE)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
