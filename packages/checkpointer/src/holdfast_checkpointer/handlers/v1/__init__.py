"""Handlers of named items: the protocol users write them by, who takes what, and our own."""
