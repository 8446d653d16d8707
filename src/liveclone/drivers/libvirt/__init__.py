"""Machines that libvirt runs: its domains, as they are. The only folder that imports libvirt's own library."""
