"""Migrations: the numbered files of `sinks/schema`, applied in order, once each, and recorded with their checksums.

Several workers may start at once: every statement may run twice, and the record of a file is a row that replaces itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from sinks.clickhouse.connection import Connection
from sinks.errors import SinkRefused
from topics.rows import TRAFFIC_EVENTS_ROWS


class SchemaChanged(SinkRefused):
    """A migration that a database already holds has other text now; the message names it."""


@dataclass(frozen=True)
class Migration:
    """One numbered file: its name and its SQL, with `{database}` where the database's name goes."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def statements(self, database: str) -> list[str]:
        """The statements in order. Comments take whole lines; a statement ends with `;` at the end of a line."""
        lines = [line for line in self.sql.splitlines() if not line.lstrip().startswith("--")]
        text = "\n".join(lines).replace("{database}", f"`{database}`")
        return [part.strip() for part in (text + "\n").split(";\n") if part.strip()]


def shipped() -> list[Migration]:
    """The migrations that come with this version, in order."""
    folder = resources.files("sinks").joinpath("schema")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [Migration(f.name.removesuffix(".sql"), f.read_text("utf-8")) for f in files]


def migrate(connection: Connection, migrations: list[Migration]) -> list[str]:
    """Apply what the database lacks and return the names applied. Raises SchemaChanged before changing anything."""
    database = connection.server.database
    connection.command(f"CREATE DATABASE IF NOT EXISTS `{database}`")
    record = connection.server.qualified("schema_migrations")
    connection.command(
        f"CREATE TABLE IF NOT EXISTS {record} (name String, checksum String, applied_at DateTime('UTC') DEFAULT now()) "
        "ENGINE = ReplacingMergeTree ORDER BY name"
    )
    held = {
        str(name): str(checksum) for name, checksum in connection.query(f"SELECT name, checksum FROM {record} FINAL")
    }
    for migration in migrations:
        if held.get(migration.name, migration.checksum) != migration.checksum:
            raise SchemaChanged(
                f"migration {migration.name} was applied to database {database} with other text. An applied file never "
                "changes: restore it and put the change in a new numbered file."
            )
    missing = [m for m in migrations if m.name not in held]
    for migration in missing:
        for statement in migration.statements(database):
            connection.command(statement)
        connection.command(f"INSERT INTO {record} (name, checksum) VALUES ('{migration.name}', '{migration.checksum}')")
    return [m.name for m in missing]


def keep_events_for(connection: Connection, hot_days: int) -> bool:
    """Let raw events expire `hot_days` after their own time; True if that changed the table."""
    database = connection.server.database
    rows = connection.query(
        "SELECT engine_full FROM system.tables WHERE database = {database:String} AND name = {name:String}",
        {"database": database, "name": TRAFFIC_EVENTS_ROWS},
    )
    if f"toIntervalDay({hot_days})" in str(rows[0][0]):
        return False
    table = connection.server.qualified(TRAFFIC_EVENTS_ROWS)
    connection.command(f"ALTER TABLE {table} MODIFY TTL toDateTime(timestamp) + toIntervalDay({hot_days})")
    return True
