"""The domains that the libvirt driver is tested with are what they say they are, and their guests answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from liveclone.model.image import Image
from tests.libvirt_domains import Shape, make_domain, wait_for_agent


@pytest.mark.parametrize(
    "shape",
    [Shape(nics=2, genid=True), Shape(machine="pc", disk_format="raw", disks=2, network="lab")],
    ids=["q35-qcow2", "i440fx-raw"],
)
def test_a_domain_boots_and_its_agent_answers(
    libvirt_connection: Any, images: dict[str, Image], tmp_path: Path, shape: Shape
) -> None:
    if shape.network:
        libvirt_connection.networkCreateXML(f"<network><name>{shape.network}</name></network>")
    domain = make_domain(libvirt_connection, images["light"], tmp_path, shape)
    try:
        wait_for_agent(domain)
        xml = ElementTree.fromstring(domain.XMLDesc())
        machine = xml.find("os/type")
        assert machine is not None
        assert ("i440fx" in machine.attrib["machine"]) == (shape.machine == "pc")
        assert [d.attrib["type"] for d in xml.findall("devices/disk/driver")] == [
            shape.disk_format
        ] * shape.disks
        assert len(xml.findall("devices/interface")) == shape.nics
    finally:
        domain.destroy()
        domain.undefine()
