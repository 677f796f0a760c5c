"""Schemas of every JSON document in a holdfast or Orbax checkpoint."""
