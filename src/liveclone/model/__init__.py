"""Frozen values shared by manifests on disk, the CLI's --json and (later) the HTTP API."""
