"""Measurements of the whole system: what `sluiceway bench` runs."""
