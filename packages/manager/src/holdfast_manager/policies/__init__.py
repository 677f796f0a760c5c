"""Policies: when to save, and what to keep."""
