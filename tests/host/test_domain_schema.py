"""What we write for libvirt is what libvirt's own schemas allow."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from liveclone.formats import domain_rewrite
from liveclone.formats.domain_rewrite import CloneSpec
from liveclone.formats.domain_xml import parse_domain

SCHEMAS = Path("/usr/share/libvirt/schemas")
DOMAINS = Path(__file__).parents[1] / "unit" / "domains"
NAMES = sorted(path.stem for path in DOMAINS.glob("*.xml"))


@pytest.fixture
def check(needs: Callable[..., None], tmp_path: Path) -> Callable[[str, str], str]:
    """Return what xmllint holds against a text by a schema."""
    needs("xmllint", "virsh")  # the schemas come with virsh

    def check(schema: str, text: str) -> str:
        path = tmp_path / "checked.xml"
        path.write_text(text)
        command = ["xmllint", "--noout", "--relaxng", str(SCHEMAS / schema), str(path)]
        run = subprocess.run(command, capture_output=True, text=True)
        return "" if run.returncode == 0 else run.stderr

    return check


@pytest.mark.parametrize("name", NAMES)
def test_clones_are_valid(name: str, check: Callable[[str, str], str]) -> None:
    xml = (DOMAINS / f"{name}.xml").read_text()
    assert check("domain.rng", xml) == ""
    domain = parse_domain(xml)
    spec = CloneSpec(
        name="clone-1",
        uuid="11111111-2222-4333-8444-555555555555",
        disks={disk.target: ("/clones/1/disk", "qcow2") for disk in domain.disks if disk.needs_own},
        genid="99999999-2222-4333-8444-555555555555" if domain.has_genid else "",
        channels={channel.name: "/clones/1/socket" for channel in domain.channels},
        console_log="/clones/1/log",
        nvram="/clones/1/nvram" if domain.nvram else "",
        private_memory=True,
        metadata='<liveclone:clone xmlns:liveclone="https://liveclone.example/1"/>',
    )
    nics = [domain_rewrite.nic_for_clone(nic.xml, nic.mac) for nic in domain.nics]
    assert check("domain.rng", domain_rewrite.rewrite_saved(xml, spec)) == ""
    assert check("domain.rng", domain_rewrite.render_definition(xml, spec, nics)) == ""


def test_snapshots_are_valid(check: Callable[[str, str], str]) -> None:
    disks = {"vda": "/overlays/a&b.qcow2", "sda": "/overlays/c.qcow2"}
    assert (
        check("domainsnapshot.rng", domain_rewrite.render_snapshot(disks, "/overlays/memory", ["sdb"])) == ""
    )
    assert check("domainsnapshot.rng", domain_rewrite.render_snapshot(disks)) == ""
    assert check("domainsnapshot.rng", "<domainsnapshot><disk/></domainsnapshot>") != ""
