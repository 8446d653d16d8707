"""Bytes in, values out. No file, no socket, no clock."""
