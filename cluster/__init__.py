"""The machines: how to start them; no library code."""
