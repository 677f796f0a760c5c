"""Handlers: one kind of item each."""
