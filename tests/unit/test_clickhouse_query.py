"""The local ClickHouse front reads statements as the server does."""

from __future__ import annotations

import io

import pytest

from compose.local.clickhouse_query import Statement, SyntaxRefused, parse


def _parse(text: bytes) -> Statement:
    return parse(io.BytesIO(text))


@pytest.mark.parametrize(
    ("text", "format", "data"),
    [
        (b"INSERT INTO t FORMAT Native\n\x00\xff", "Native", b"\x00\xff"),
        (b"insert into t (a, `format`) format CSV\r\n1,2", "CSV", b"1,2"),
        (b"-- FORMAT JSON\nINSERT /* FORMAT x */ INTO t SETTINGS a='FORMAT y' FORMAT TSV 1\t2", "TSV", b"1\t2"),
        (b"INSERT INTO FUNCTION file('x', 'CSV', 'format String') FORMAT CSV\n\n1", "CSV", b"\n1"),
        (b"INSERT INTO t FORMAT JSONEachRow;\n{}", "JSONEachRow", b"{}"),
        (b"INSERT INTO t FORMAT Arrow", "Arrow", b""),
    ],
)
def test_an_insert_ends_where_its_data_begins(text: bytes, format: str, data: bytes) -> None:
    statement = _parse(text)
    assert (statement.kind, statement.format) == ("insert", format)
    assert text[statement.data_at :] == data


@pytest.mark.parametrize(
    ("text", "sql", "settings"),
    [
        (b"INSERT INTO t (a) FORMAT CSV\n1", "INSERT INTO t (a) ", ""),
        (b"INSERT INTO t settings a=1, b = 'x' FORMAT CSV\n1", "INSERT INTO t ", "settings a=1, b = 'x' "),
        (b"INSERT INTO settings SETTINGS a=1 FORMAT CSV\n1", "INSERT INTO settings ", "SETTINGS a=1 "),
        (b"INSERT INTO settings (settings) FORMAT CSV\n1", "INSERT INTO settings (settings) ", ""),
    ],
)
def test_the_settings_of_an_insert_are_apart(text: bytes, sql: str, settings: str) -> None:
    statement = _parse(text)
    assert (statement.sql, statement.settings) == (sql, settings)


@pytest.mark.parametrize(
    ("text", "kind", "format"),
    [
        (b"SELECT 1", "read", None),
        (b"select format from t", "read", None),
        (b"SELECT format, a FROM t FORMAT JSON SETTINGS max_threads=1", "read", "JSON"),
        (b"WITH 1 AS x SELECT ';', x\n FORMAT Native;", "read", "Native"),
        (b"(SELECT 1) UNION ALL (SELECT 2 FORMAT x)", "read", None),
        (b"SHOW TABLES FORMAT TSV", "answer", "TSV"),
        (b"SET a = 1", "set", None),
        (b"CREATE TABLE t (a UInt8) ENGINE = Memory", "other", None),
        (b"INSERT INTO t VALUES (1), (2)", "other", None),
        (b"INSERT INTO t SELECT 1 FORMAT CSV", "other", None),
        (b"INSERT INTO t FROM INFILE 'x' FORMAT CSV", "other", None),
    ],
)
def test_kind_and_format_are_known(text: bytes, kind: str, format: str | None) -> None:
    statement = _parse(text)
    assert (statement.kind, statement.format, statement.sql) == (kind, format, text.decode())


@pytest.mark.parametrize("text", [b"", b"  -- nothing\n", b"SELECT 1; SELECT 2", b"SELECT '\xff'"])
def test_what_the_server_refuses_is_refused(text: bytes) -> None:
    with pytest.raises(SyntaxRefused):
        _parse(text)


def test_a_long_list_does_not_hide_the_format() -> None:
    numbers = b",".join(b"%d" % n for n in range(300_000))
    statement = _parse(b"SELECT 1 WHERE 1 IN (" + numbers + b") FORMAT JSON")
    assert statement.format == "JSON"
