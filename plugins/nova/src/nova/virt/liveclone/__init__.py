"""The name by which Nova loads the driver: it looks for drivers below nova.virt alone. The driver is in liveclone_nova."""

from liveclone_nova.libvirt_driver import LibvirtDriver as LibvirtDriver
