"""Rows of committed state that the sink has not: by key, each in its newest version, and how much memory they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]

#: What a row takes beside its texts, about.
ROW_BYTES = 3_000


class Unwritten:
    """Rows have a `version`. The sink being away, they gather here; the runtime folds no more when they are too many."""

    def __init__(self, rows: Mapping[str, Row] | None = None) -> None:
        self.rows: dict[str, Row] = {}
        self.nbytes = 0
        self.add(rows or {})

    def add(self, rows: Mapping[str, Row]) -> None:
        """Newer rows take the place of older ones."""
        for key, row in rows.items():
            old = self.rows.get(key)
            self.nbytes += _size(row) - (0 if old is None else _size(old))
            self.rows[key] = row

    @property
    def newest(self) -> int:
        """The highest version."""
        return max(int(row["version"]) for row in self.rows.values())

    def forget(self, version: int) -> None:
        """All up to a version are written."""
        for key in [key for key, row in self.rows.items() if row["version"] <= version]:
            self.nbytes -= _size(self.rows.pop(key))


def _size(row: Row) -> int:
    return ROW_BYTES + sum(len(value) for value in row.values() if isinstance(value, str))
