"""The aggregate states that ClickHouse merges, built in columns: pure functions and values over numpy arrays."""
