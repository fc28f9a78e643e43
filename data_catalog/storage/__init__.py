"""Filesystems, copies on the local disk, and the right to write."""
