"""Reads of a ClickHouse statement what its HTTP interface must know: what kind it is, its format, where its data begins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Literal

# Kinds that answer with a result set; the rest (DDL, SET, INSERT, ...) answer with an empty body and no format.
_ANSWERS = {"SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK", "KILL", "FROM", "("}
_READS = {"SELECT", "WITH", "FROM", "("}

_TOKEN = re.compile(
    rb"""(?P<skip>\s+|--[^\n]*|\#[ !][^\n]*|/\*.*?(?:\*/|\Z))
       | (?P<quoted>'(?:[^'\\]|\\.|'')*(?:'|\Z)|`(?:[^`\\]|\\.|``)*(?:`|\Z)|"(?:[^"\\]|\\.|"")*(?:"|\Z))
       | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
       | (?P<number>[0-9][A-Za-z0-9_.]*)
       | (?P<sign>.)""",
    re.DOTALL | re.VERBOSE,
)
_END_OF_FORMAT = re.compile(rb"[ \t\f]*;?[ \t\f]*\r?\n?")

# An INSERT's head ends well before this; a longer text is not searched for the start of its data.
HEAD_BYTES = 1 << 20


class SyntaxRefused(ValueError):
    """A statement that the server would refuse before it ran it; `code` is ClickHouse's error code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Statement:
    """One statement. Of an INSERT with data, `sql` ends before the SETTINGS and FORMAT clauses, which are apart.

    `data_at` is where its data begins in the text that was parsed; None where none follows.
    """

    kind: Literal["insert", "read", "answer", "set", "other"]
    sql: str
    format: str | None = None
    data_at: int | None = None
    settings: str = ""


@dataclass(frozen=True)
class _Token:
    text: bytes
    start: int
    end: int

    @property
    def word(self) -> str:
        return self.text.decode("latin-1").upper()


def parse(source: IO[bytes]) -> Statement:
    """Parse the statement at the start of `source`, for an INSERT with its data behind it.

    Raises SyntaxRefused for an empty text, for two statements, and for SQL that is not UTF-8.
    """
    head = source.read(HEAD_BYTES)
    tokens = _top_level(head)
    first = next(tokens, None)
    if first is None:
        raise SyntaxRefused(62, "Syntax error: Empty query")
    if first.word == "INSERT" and (insert := _insert(head, tokens)) is not None:
        return insert
    text = head + source.read()
    if first.word == "INSERT":
        return Statement("other", _decoded(text))
    rest = list(_top_level(text))[1:]
    _refuse_second(rest)
    if first.word in _ANSWERS:
        return Statement("read" if first.word in _READS else "answer", _decoded(text), _trailing_format(rest))
    return Statement("set" if first.word in ("SET", "USE") else "other", _decoded(text))


def _insert(head: bytes, tokens: Iterator[_Token]) -> Statement | None:
    """An INSERT whose data follows it in a named format; None for one that the engine reads as a whole."""
    settings_at: int | None = None
    before = [_Token(b"", 0, 0)] * 2
    for token in tokens:
        if token.word in ("SELECT", "WITH", "VALUES", "INFILE", "WATCH"):
            return None
        if token.text == b"=" and before[0].word == "SETTINGS" and settings_at is None:
            settings_at = before[0].start
        if token.word == "FORMAT" and (name := next(tokens, None)) is not None:
            if name.word == "VALUES":
                return None
            after = _END_OF_FORMAT.match(head, name.end)
            assert after is not None
            end = token.start if settings_at is None else settings_at
            clause = _decoded(head[end : token.start])
            return Statement("insert", _decoded(head[:end]), name.text.decode("latin-1"), after.end(), clause)
        before = [before[1], token]
    return None


def _top_level(text: bytes) -> Iterator[_Token]:
    """Words and signs outside quotes, comments and parentheses; an opening parenthesis itself is given."""
    depth = 0
    for match in _TOKEN.finditer(text):
        if match.lastgroup == "skip":
            continue
        sign = match[0] if match.lastgroup == "sign" else b""
        if sign in (b")", b"]", b"}") and sign:
            depth -= 1
        elif depth == 0:
            yield _Token(match[0], match.start(), match.end())
        if sign in (b"(", b"[", b"{") and sign:
            depth += 1


def _refuse_second(tokens: list[_Token]) -> None:
    ends = [index for index, token in enumerate(tokens) if token.text == b";"]
    if ends and any(token.text != b";" for token in tokens[ends[0] :]):
        raise SyntaxRefused(62, "Syntax error (Multi-statements are not allowed)")


def _trailing_format(tokens: list[_Token]) -> str | None:
    """The name after the last FORMAT, unless that word is a column's: then other clauses follow it."""
    for index in range(len(tokens) - 2, -1, -1):
        if tokens[index].word == "FORMAT" and tokens[index + 1].text.isalnum():
            after = tokens[index + 2].word if index + 2 < len(tokens) else ";"
            return tokens[index + 1].text.decode("latin-1") if after in (";", "SETTINGS") else None
    return None


def _decoded(sql: bytes) -> str:
    try:
        return sql.decode()
    except UnicodeDecodeError as error:
        raise SyntaxRefused(62, f"Syntax error: the query is not UTF-8: {error}") from None
