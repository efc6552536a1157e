"""Keys and links of files: safe whatever a client calls its file, the same in a replay, and checkable by Cloudflare's rule."""

from __future__ import annotations

import base64
import hashlib
import hmac
import unicodedata
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinks.presign import PublicDomain, content_disposition
from topics.files_keys import NAME_BYTES_MAX, converted_key, converted_name, renamed, safe_file_name, upload_key


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        ("clip.mp3", "clip.mp3"),
        ("Übung – 音楽.mp3", "Übung_–_音楽.mp3"),
        ("Übung.mp3", "Übung.mp3"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\clip.mp4", "clip.mp4"),
        ("..", "file"),
        ("", "file"),
        (".htaccess", "htaccess"),
        ("a\"b'c\r\n.mp3", "a_b_c__.mp3"),
        ("photo\u202egnp.exe", "photognp.exe"),
        ("a\x00b.wav", "ab.wav"),
        ("\ud800.wav", "wav"),
    ],
)
def test_a_file_name_stays_readable_and_is_safe(given_: str, kept: str) -> None:
    assert safe_file_name(given_) == kept


@given(st.text(max_size=400))
def test_any_name_is_one_short_part_without_what_breaks_headers_and_paths(name: str) -> None:
    safe = safe_file_name(name)
    assert 0 < len(safe.encode()) <= NAME_BYTES_MAX
    assert not set(safe) & set("/\\\"'\r\n\t%#?")
    assert safe.strip(".") == safe
    assert not any(unicodedata.category(character)[0] in "CZ" for character in safe)
    assert safe_file_name(safe) == safe


def test_a_replay_names_the_same_key_and_another_attempt_another_one() -> None:
    keys = {converted_key(1_700, "j", term, attempt, "a.mp3") for term, attempt in [(1, 1), (1, 2), (2, 1), (1, 1)]}
    assert len(keys) == 3
    assert all(key.startswith("converted/1700_") and key.endswith("_a.mp3") for key in keys)
    assert upload_key("u", "../b.mp3") == "uploads/u/b.mp3"
    assert renamed("Übung.tar.wav", "mp3") == "Übung.tar.mp3"
    assert renamed("no extension", "mp3") == "no_extension.mp3"


@pytest.mark.parametrize("folder", ["", "/a/b"])
def test_a_link_to_the_public_domain_has_the_token_of_cloudflares_rule(folder: str) -> None:
    domain = PublicDomain(f"https://files.example.com{folder}/", "secret")
    link = urlsplit(domain.link("converted/1_a_Ü b.mp3", 1_700_000_000))
    assert (link.netloc, link.path) == ("files.example.com", f"{folder}/converted/1_a_%C3%9C%20b.mp3")
    stamp, _, mac = link.query.removeprefix("verify=").partition("-")
    wanted = hmac.new(b"secret", f"{link.path}{stamp}".encode(), hashlib.sha256).digest()
    assert stamp == "1700000000" and base64.b64decode(unquote(mac)) == wanted
    assert PublicDomain("https://files.example.com").link("a/b", 1) == "https://files.example.com/a/b"


def test_a_disposition_is_one_header_line_whatever_the_name() -> None:
    assert content_disposition("a.mp3") == 'attachment; filename="a.mp3"'
    assert content_disposition('a"\r\n.mp3') == "attachment; filename=\"a___.mp3\"; filename*=UTF-8''a%22%0D%0A.mp3"


@pytest.mark.parametrize("name", ["a.mp3", "_a__b_.mp3", "\u00fc/x_1.mp3", ""])
def test_the_key_of_a_result_has_its_file_name(name: str) -> None:
    assert converted_name(converted_key(1_700, "j", 1, 1, name)) == safe_file_name(name)
