"""Imports run one way, without a circle, and the few special rules of the house hold.

    errors <- units ids trace <- model <- formats <- host <- drivers | store | identity <- images <- engine <- api | cli

Plugins stand on top: they may import liveclone, and nothing of liveclone imports a plugin or what it plugs into.

The sources are read, never run, so late imports inside functions count too; those under `if TYPE_CHECKING`
do not. `find_faults` is itself tested on made-up trees, one for each rule.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "liveclone"

# A package imports itself and what has a lower rank; of two with the same rank neither imports the other.
RANKS = {
    "errors": 0,
    "units": 1,
    "ids": 1,
    "trace": 1,
    "model": 2,
    "formats": 3,
    "host": 4,
    "drivers": 5,
    "store": 5,
    "identity": 5,
    "images": 6,
    "engine": 7,
    "api": 8,
    "cli": 8,
    "facade": 8,
    "": 9,  # liveclone/__init__.py, what a Python user imports
    "__main__": 9,
}

# `formats` turns bytes into values and back; it knows no file, no socket, no process.
INPUT_OUTPUT = {
    "asyncio", "fcntl", "mmap", "multiprocessing", "os", "pathlib", "select", "selectors", "shutil", "signal",
    "socket", "subprocess", "tempfile", "threading",
}  # fmt: skip

PLUGINS = {"nova", "liveclone_nova"}

# Of liveclone-nova: what nova-api loads must not draw in what only nova-compute has (libvirt's driver, the manager).
NOVA_API = {"api", "compute_api", "exceptions", "obstacles", "policies", "properties", "rpcapi", "versions"}
NOVA_CLIENT = {"osc"}  # has neither of them
NOVA_COMPUTE = {
    *("capture", "clone", "clone_xml", "conf", "domains", "endpoint", "evidence", "fitting", "guest_devices"),
    *("identity", "interface", "parameters", "source", "traits"),
    *("libvirt_driver", "notifications", "recovery", "seal", "state_file", "state_images", "states", "vifs"),
}

GUEST_PYTHON = (3, 8)
PACK = "liveclone.guest.pack"  # puts the agent into one file; runs on the host, when an image is built


def find_faults(files: dict[str, str]) -> list[str]:
    """Return what breaks the rules, a sentence each.

    Args:
        files: sources by path inside liveclone/ ("drivers/qemu/argv.py").
    """
    modules = {name_of(path): path for path in files}
    arrows: dict[str, set[str]] = {}
    faults = []
    for module, path in modules.items():
        arrows[module] = set()
        for target in imports_of(files[path], module, path.endswith("__init__.py"), set(modules)):
            if target in modules:
                arrows[module].add(target)
            faults += [f"{path}: {fault}" for fault in judge(module, target)]
        faults += [f"{path}: {fault}" for fault in judge_text(module, files[path])]
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        faults.append("circle: " + " <- ".join(error.args[1]))
    return faults


def name_of(path: str) -> str:
    parts = ["liveclone", *path.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(text: str, module: str, is_package: bool, modules: set[str]) -> Iterator[str]:
    """Yield the full names of the modules that `module` imports: of ours and of others."""
    package = module if is_package else module.rpartition(".")[0]
    for node in walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            for alias in node.names:
                if (base, alias.name) == ("liveclone", "__version__"):
                    continue
                inner = f"{base}.{alias.name}"
                yield inner if inner in modules else base


def walk(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from walk(child)


def package_of(module: str) -> str | None:
    """Return "drivers" for liveclone.drivers.qemu.argv, "" for liveclone itself, None for what is not ours."""
    head, *rest = module.split(".")
    if head != "liveclone":
        return None
    return rest[0] if rest else ""


def judge(module: str, target: str) -> Iterator[str]:
    here, there = package_of(module), package_of(target)
    if here is None:
        return
    outer = target.split(".")[0]
    if here == "guest":
        if there is not None and there != "guest":
            yield f"the guest imports {target}"
        if there is None and outer not in sys.stdlib_module_names:
            yield f"the guest imports {target}, which is not of the standard library"
    elif here not in RANKS:
        yield f"{here} has no place in the order of packages"
    elif there is None:
        if here == "formats" and outer in INPUT_OUTPUT:
            yield f"formats imports {target}: bytes in, values out"
        if outer in PLUGINS:
            yield f"{target} is a plugin's affair"
        if outer in ("libvirt", "libvirtaio", "libvirt_qemu") and not module.startswith(
            "liveclone.drivers.libvirt"
        ):
            yield f"{target} is imported outside of drivers/libvirt"
    elif here == "images" and target == PACK:
        return
    elif there == "guest":
        yield f"{target} belongs to the guest"
    elif there != here and RANKS.get(there, 99) >= RANKS[here]:
        yield f"an arrow runs back: {here} imports {target}"


def judge_text(module: str, text: str) -> Iterator[str]:
    if package_of(module) == "formats":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
                yield "formats opens a file"
    if package_of(module) == "guest":
        try:
            ast.parse(text, feature_version=GUEST_PYTHON)
        except SyntaxError as error:
            yield f"not Python {GUEST_PYTHON[0]}.{GUEST_PYTHON[1]}: {error.msg}, line {error.lineno}"


def read_source() -> dict[str, str]:
    return {path.relative_to(SOURCE).as_posix(): path.read_text() for path in sorted(SOURCE.rglob("*.py"))}


def test_the_house_keeps_its_rules() -> None:
    assert find_faults(read_source()) == []


def test_the_house_is_really_read() -> None:
    files = read_source()
    assert {"errors.py", "units.py", "model/machine.py", "host/process.py", "drivers/base.py"} <= set(files)
    modules = {name_of(path) for path in files}
    found = set(imports_of(files["drivers/base.py"], "liveclone.drivers.base", False, modules))
    assert {"liveclone.model.machine", "liveclone.model.network", "asyncio"} <= found


GOOD = {
    "__init__.py": "def run():\n    from .engine import snapshot\n",
    "errors.py": "",
    "units.py": "from .errors import Refused",
    "model/__init__.py": "from .machine import Machine",
    "model/base.py": "from ..errors import Corrupt",
    "model/machine.py": "from . import base\nfrom .base import Value",
    "formats/stream.py": "import struct\nfrom ..units import PAGE",
    "host/process.py": "import os\nfrom ..model.machine import Machine",
    "drivers/base.py": "from ..model import machine",
    "drivers/libvirt/domain.py": "import libvirt\nfrom .. import base\nfrom ...host import process",
    "store/layout.py": "from ..host.process import start",
    "engine/snapshot.py": "from .. import __version__\nfrom ..drivers.base import Driver\nfrom ..store import layout",
    "cli/main.py": "import typer\ndef run():\n    from ..engine import snapshot\n",
    "guest/agent.py": "import json\nfrom . import items\nfrom .items import hostname",
    "guest/items/__init__.py": "",
    "guest/items/hostname.py": "import socket",
}


def test_a_good_house_has_no_fault() -> None:
    assert find_faults(GOOD) == []


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("errors.py", "from .units import PAGE", "an arrow runs back: errors imports liveclone.units"),
        ("units.py", "from . import ids", "an arrow runs back: units imports liveclone.ids"),
        (
            "model/machine.py",
            "from ..host import process",
            "an arrow runs back: model imports liveclone.host",
        ),
        (
            "model/machine.py",
            "import liveclone.host.process",
            "an arrow runs back: model imports liveclone.host",
        ),
        (
            "host/process.py",
            "def f():\n    from ..engine import snapshot",
            "an arrow runs back: host imports",
        ),
        ("host/process.py", "from .. import drivers", "an arrow runs back: host imports liveclone"),
        (
            "drivers/base.py",
            "from ..store import layout",
            "an arrow runs back: drivers imports liveclone.store",
        ),
        (
            "store/layout.py",
            "from ..drivers import base",
            "an arrow runs back: store imports liveclone.drivers",
        ),
        ("store/layout.py", "from ..identity import policy", "an arrow runs back: store imports"),
        ("engine/snapshot.py", "from ..cli import main", "an arrow runs back: engine imports liveclone.cli"),
        ("engine/snapshot.py", "from liveclone import run", "an arrow runs back: engine imports liveclone"),
        ("cli/main.py", "from ..api import routes", "an arrow runs back: cli imports liveclone.api"),
        ("formats/stream.py", "from pathlib import Path", "formats imports pathlib"),
        ("formats/stream.py", "import os.path", "formats imports os.path"),
        ("formats/stream.py", "def read(p):\n    return open(p).read()", "formats opens a file"),
        ("guest/agent.py", "from ..units import PAGE", "the guest imports liveclone.units"),
        ("guest/agent.py", "import liveclone.errors", "the guest imports liveclone.errors"),
        ("guest/agent.py", "import msgspec", "msgspec, which is not of the standard library"),
        ("guest/agent.py", "match 1:\n    case 1: pass", "not Python 3.8"),
        ("engine/snapshot.py", "import libvirt", "libvirt is imported outside of drivers/libvirt"),
        ("engine/snapshot.py", "from nova import exception", "nova is a plugin's affair"),
        ("cli/main.py", "import liveclone_nova.api", "liveclone_nova.api is a plugin's affair"),
        ("engine/snapshot.py", "from ..guest import agent", "liveclone.guest.agent belongs to the guest"),
        ("helpers/things.py", "from ..errors import Refused", "helpers has no place"),
        ("model/base.py", "from .machine import Machine", "circle: "),
        ("model/base.py", "def late():\n    from . import machine", "circle: "),
    ],
)
def test_each_rule_is_enforced(path: str, text: str, fault: str) -> None:
    others = {"ids.py": "", "identity/policy.py": "", "api/routes.py": ""}
    faults = find_faults(GOOD | others | {path: text})
    assert any(fault in found for found in faults), faults


def test_an_import_for_types_alone_is_no_arrow() -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..engine import snapshot\n"
    assert find_faults(GOOD | {"host/process.py": text}) == []


def find_plugin_faults(files: dict[str, str]) -> list[str]:
    """Return what breaks the rules of plugins/nova, a sentence each; `files` by path inside liveclone_nova/."""
    modules = {f"liveclone_nova.{path.removesuffix('.py')}": path for path in files if path != "__init__.py"}
    faults = []
    for module, path in modules.items():
        here = module.rpartition(".")[2]
        if here not in NOVA_API | NOVA_COMPUTE | NOVA_CLIENT:
            faults.append(f"{path}: neither of nova-api nor of nova-compute nor of the client")
        for target in imports_of(files[path], module, False, set(modules)):
            outer, _, inner = target.partition(".")
            if here in NOVA_CLIENT and outer in ("nova", "liveclone", "liveclone_nova"):
                faults.append(f"{path}: the client has no {target}")
            if outer == "liveclone_nova" and here in NOVA_API and inner in NOVA_COMPUTE:
                faults.append(f"{path}: nova-api draws in {inner}")
            if here in NOVA_API and target.startswith(("nova.virt.libvirt", "nova.compute.manager")):
                faults.append(f"{path}: nova-api draws in {target}")
            if package_of(target) in ("api", "cli", "guest"):
                faults.append(f"{path}: {target} is not for plugins")
    return faults


def test_the_nova_plugin_keeps_its_rules() -> None:
    source = ROOT / "plugins" / "nova" / "src" / "liveclone_nova"
    files = {path.relative_to(source).as_posix(): path.read_text() for path in sorted(source.rglob("*.py"))}
    assert "libvirt_driver.py" in files
    assert find_plugin_faults(files) == []


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("api.py", "from liveclone_nova import capture", "nova-api draws in capture"),
        ("obstacles.py", "from nova.virt.libvirt import driver", "nova-api draws in nova.virt.libvirt"),
        ("capture.py", "from liveclone.cli import main", "liveclone.cli is not for plugins"),
        ("osc.py", "from nova import exception", "the client has no nova"),
        ("helpers.py", "", "neither of nova-api nor of nova-compute"),
    ],
)
def test_each_rule_of_the_nova_plugin_is_enforced(path: str, text: str, fault: str) -> None:
    faults = find_plugin_faults({"__init__.py": "", "api.py": "", "capture.py": "", path: text})
    assert [found for found in faults if fault in found], faults
