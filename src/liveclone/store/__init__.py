"""Machines, snapshots and leases on disk. Files only; it knows no hypervisor."""
