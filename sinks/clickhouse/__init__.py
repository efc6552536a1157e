"""ClickHouse: the schema and its migrations, durable grouped inserts, and the few queries that status pages ask."""
