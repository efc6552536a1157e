"""Real shapes of access-log lines, and the request that each one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.traffic.accessline import AccessLine
from streams.traffic.accesslog import event_id, event_json, parse_line
from topics.traffic import Malformed

MAY_17 = 1431857103000  # 2015-05-17T10:05:03Z
SAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "apache_combined.log"

GOLDEN = {
    "combined": (
        rb'83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET /a.png HTTP/1.1" 200 203023 "http://x/" "Moz/5.0 (X)"',
        AccessLine(MAY_17, "GET", "/a.png", 200, "83.149.9.216", None, 203023, "Moz/5.0 (X)"),
    ),
    "common": (
        rb'127.0.0.1 - frank [17/May/2015:03:05:03 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326',
        AccessLine(MAY_17, "GET", "/apache_pb.gif", 200, "127.0.0.1", None, 2326, None),
    ),
    "common with $request_time": (
        rb'127.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET /x HTTP/1.0" 200 5 0.250',
        AccessLine(MAY_17, "GET", "/x", 200, "127.0.0.1", 250.0, 5, None),
    ),
    "combined with $request_time": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "POST /api HTTP/2.0" 201 17 "-" "curl/8.5.0" 0.003',
        AccessLine(MAY_17, "POST", "/api", 201, "10.0.0.1", 3.0, 17, "curl/8.5.0"),
    ),
    "nginx main with x_forwarded_for and request_time": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 1 "-" "a" "1.2.3.4, 5.6.7.8" 1.5',
        AccessLine(MAY_17, "GET", "/", 200, "10.0.0.1", 1500.0, 1, "a"),
    ),
    "nginx main with x_forwarded_for": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 1 "-" "a" "1.2.3.4"',
        AccessLine(MAY_17, "GET", "/", 200, "10.0.0.1", None, 1, "a"),
    ),
    "a trailing whole number is not guessed": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 1 "-" "a" 15321',
        AccessLine(MAY_17, "GET", "/", 200, "10.0.0.1", None, 1, "a"),
    ),
    "IPv6": (
        rb'2001:db8::1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 304 - "-" "-"',
        AccessLine(MAY_17, "GET", "/", 304, "2001:db8::1", None, 0, None),
    ),
    "IPv6 with zone": (
        rb'fe80::1%eth0 - - [17/May/2015:10:05:03 +0000] "HEAD / HTTP/1.1" 204 - "-" "-"',
        AccessLine(MAY_17, "HEAD", "/", 204, "fe80::1", None, 0, None),
    ),
    "query and fragment": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET /s?q=a%20b&x=/y#z HTTP/1.1" 200 1 "-" "a"',
        AccessLine(MAY_17, "GET", "/s", 200, "10.0.0.1", None, 1, "a"),
    ),
    "escaped quotes": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET /a\"b\" HTTP/1.1" 404 1 "-" "say \"hi\" \\o/"',
        AccessLine(MAY_17, "GET", '/a"b"', 404, "10.0.0.1", None, 1, 'say "hi" \\o/'),
    ),
    "nginx escapes bytes": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET /\xC3\xA9\x22 HTTP/1.1" 200 1 "-" "\xD0\x96\x5C"',
        AccessLine(MAY_17, "GET", '/é"', 200, "10.0.0.1", None, 1, "Ж\\"),
    ),
    "unescaped quotes in the agent": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET /a HTTP/1.1" 200 1 "http://r/" "Moz "5" x" 0.012',
        AccessLine(MAY_17, "GET", "/a", 200, "10.0.0.1", 12.0, 1, 'Moz "5" x'),
    ),
    "unescaped quotes in the request": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET /a"b HTTP/1.1" 200 1 "-" "x"',
        AccessLine(MAY_17, "GET", '/a"b', 200, "10.0.0.1", None, 1, "x"),
    ),
    "an agent that imitates a status stays an agent": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET /a HTTP/1.1" 500 1 "-" "x\" 200 9 \"y"',
        AccessLine(MAY_17, "GET", "/a", 500, "10.0.0.1", None, 1, 'x" 200 9 "y'),
    ),
    "odd method": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "PROPFIND /dav/ HTTP/1.1" 207 1 "-" "x"',
        AccessLine(MAY_17, "PROPFIND", "/dav/", 207, "10.0.0.1", None, 1, "x"),
    ),
    "OPTIONS *": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "OPTIONS * HTTP/1.0" 200 - "-" "Apache (dummy connection)"',
        AccessLine(MAY_17, "OPTIONS", "*", 200, "10.0.0.1", None, 0, "Apache (dummy connection)"),
    ),
    "absolute target": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET http://host:80/p?x HTTP/1.1" 200 1 "-" "x"',
        AccessLine(MAY_17, "GET", "/p", 200, "10.0.0.1", None, 1, "x"),
    ),
    "HTTP/0.9 and a space in the target": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET /a b" 200 1 "-" "x"',
        AccessLine(MAY_17, "GET", "/a b", 200, "10.0.0.1", None, 1, "x"),
    ),
    "no request": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "-" 408 - "-" "-"',
        AccessLine(MAY_17, "-", "-", 408, "10.0.0.1", None, 0, None),
    ),
    "a TLS handshake on a plain port": (
        rb'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "\x16\x03\x01\x00 \x01\x00" 400 150 "-" "-"',
        AccessLine(MAY_17, "-", "-", 400, "10.0.0.1", None, 150, None),
    ),
    "a user with a space, not UTF-8": (
        b'10.0.0.1 - mary ann [17/May/2015:10:05:03 +0000] "GET /\xff HTTP/1.1" 200 1 "-" "x"',
        AccessLine(MAY_17, "GET", "/\\xff", 200, "10.0.0.1", None, 1, "x"),
    ),
    "json, nginx strings": (
        b'{"time_iso8601":"2015-05-17T12:05:03+02:00","remote_addr":"10.0.0.1","request":"GET /a?b HTTP/1.1",'
        b'"status":"200","body_bytes_sent":"612","request_time":"0.004","http_user_agent":"curl/8"}',
        AccessLine(MAY_17, "GET", "/a", 200, "10.0.0.1", 4.0, 612, "curl/8"),
    ),
    "json, msec and numbers": (
        b' {"msec": 1431857103.250, "remote_addr": "::1", "method": "PUT", "uri": "/a", "status": 500, "bytes": 0}',
        AccessLine(MAY_17 + 250, "PUT", "/a", 500, "::1", None, 0, None),
    ),
    "json, @timestamp and dashes": (
        b'{"@timestamp":"2015-05-17T10:05:03.5Z","remote_addr":"10.0.0.1","request_method":"GET","request_uri":"/a",'
        b'"status":"204","body_bytes_sent":"-","request_time":"-","http_user_agent":"-"}',
        AccessLine(MAY_17 + 500, "GET", "/a", 204, "10.0.0.1", None, None, None),
    ),
    "json, time_local": (
        b'{"time_local":"17/May/2015:10:05:03 +0000","remote_addr":"10.0.0.1","method":"GET","path":"/a","status":200}',
        AccessLine(MAY_17, "GET", "/a", 200, "10.0.0.1", None, None, None),
    ),
}

BAD = {
    "empty": (b"  ", "empty"),
    "prose": (b"hello world", "not_combined"),
    "an error log": (b"2015/05/17 10:05:03 [error] 7#7: *1 open() failed", "not_combined"),
    "no such month": (rb'1.1.1.1 - - [17/Mai/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 1', "time"),
    "no such day": (rb'1.1.1.1 - - [31/Feb/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 1', "time"),
    "no such second": (rb'1.1.1.1 - - [17/May/2015:10:05:7x +0000] "GET / HTTP/1.1" 200 1', "time"),
    "cut off": (rb'1.1.1.1 - - [17/May/2015:10:05:03 +0000] "GET / HT', "not_combined"),
    "not json": (b'{"status": 200', "not_json"),
    "json without a time": (b'{"remote_addr":"1.1.1.1","request":"GET / HTTP/1.1","status":200}', "invalid"),
    "json with a time of no zone": (
        b'{"time_iso8601":"2015-05-17T10:05:03","remote_addr":"1.1.1.1","request":"GET /","status":200}',
        "invalid",
    ),
    "json with a wrong type": (b'{"msec":1,"remote_addr":["1.1.1.1"],"request":"GET /","status":200}', "invalid"),
    "json with a status of no number": (b'{"msec":1,"remote_addr":"::1","request":"GET /","status":"ok"}', "invalid"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_line_gives_its_request(name: str) -> None:
    line, expected = GOLDEN[name]
    assert parse_line(line) == expected
    assert isinstance(event_json(expected, event_id(line, 0)), bytes)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_gives_its_reason(name: str) -> None:
    line, reason = BAD[name]
    result = parse_line(line)
    assert isinstance(result, Malformed)
    assert result.reason == reason


def test_a_host_name_or_a_missing_status_is_no_event() -> None:
    for line in (
        rb'host.example - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 1',
        rb'1.1.1.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" - 1',
    ):
        parsed = parse_line(line)
        assert isinstance(parsed, AccessLine)
        assert isinstance(event_json(parsed, "id"), Malformed)


def test_ids_are_of_the_line_and_its_occurrence() -> None:
    ids = {event_id(line, n) for line in (b"a", b"b", b"1\na") for n in (0, 1, 11)}
    assert len(ids) == 9
    assert event_id(b"a", 0) == "0aaa3dc556aec87f6f0e575f686f779a"


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"no sample log at {SAMPLE}")
def test_every_line_of_a_real_log_is_an_event() -> None:
    lines = SAMPLE.read_bytes().splitlines()
    parsed = [parse_line(line) for line in lines]
    events = [
        event_json(p, event_id(line, 0)) for p, line in zip(parsed, lines, strict=True) if isinstance(p, AccessLine)
    ]
    assert len(events) == len(lines) == 6000
    assert sum(isinstance(e, bytes) for e in events) == 6000
