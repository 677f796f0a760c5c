"""Conformance kit: what a backend or a commit strategy must show."""
