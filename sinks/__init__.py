"""Where results rest: ClickHouse and the object store."""
