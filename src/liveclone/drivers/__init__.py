"""Hypervisors. One folder each behind the Protocols of `base`; they know nothing of the store."""
