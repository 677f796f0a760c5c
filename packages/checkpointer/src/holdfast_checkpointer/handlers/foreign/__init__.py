"""Handlers that users wrote against Orbax's protocol, driven by the engine."""
