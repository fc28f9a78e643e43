"""Faults that a run survives: it is disturbed from outside, and held against an undisturbed one."""
