"""Servers that the backends are tried on, each on a free port of the loopback."""
