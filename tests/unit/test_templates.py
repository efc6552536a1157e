"""Path templates: a table of what is an id and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.traffic.templates import template

IDS = {
    "/users/42": "/users/{id}",
    "/users/42/": "/users/{id}/",
    "/users/0042/orders/7": "/users/{id}/orders/{id}",
    "42": "{id}",
    "//42//": "//{id}//",
    "/blog/2009/10": "/blog/{id}/{id}",
    "/tasks/6fa459ea-ee8a-3ca4-894e-db77e160355e": "/tasks/{id}",
    "/tasks/6FA459EA-EE8A-3CA4-894E-DB77E160355E/result": "/tasks/{id}/result",
    "/blobs/9f86d081884c7d65": "/blobs/{id}",
    "/blobs/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855": "/blobs/{id}",
    "/commit/DEADBEEFDEADBEEF": "/commit/{id}",
    "/orders/01ARZ3NDEKTSV4RRFFQ69G5FAV": "/orders/{id}",
    "/s/V1StGXR8_Z5jdHi6B-myT": "/s/{id}",
    "/charges/ch_3MmlLrLkdIwHu7ix0snN0B15": "/charges/{id}",
    "/font/xjAJXh38I15wypJXxuGMBp0EAVxt0G0biEntp43Qt6E": "/font/{id}",
    "/pods/frontend-deployment-7d4b9c6f5d-x2x8z": "/pods/{id}",
    "/parts/6fa459ea-ee8a-3ca4-894e": "/parts/{id}",
    "/users/{id}/posts/7": "/users/{id}/posts/{id}",
}

KEPT = [
    "",
    "/",
    "//",
    "*",
    "/v1/docs:batchGet",
    "/v2/users",
    "/api/v10/health",
    "/2024-05-01/report",
    "/static/logo-1234.png",
    "/files/9f86d081884c7d65.jpg",
    "/files/42.json",
    "/downloads/logstash-1.3.2-monolithic.jar",
    "/releases/1.2.3",
    "/talks/logstash-puppetconf-2012",
    "/talks/logstash-monitorama-2013-keynote",
    "/blog/installing-windows-8-consumer-preview",
    "/java-base64encoder-example",
    "/google-oauth2client-library",
    "/a-very-long-slug-without-any-number-at-all",
    "/AVeryLongCamelCaseNameOfSomething",
    "/____________________",
    "/--------------------",
    "/cafe",
    "/9f86d081884c7d6",
    "/x|||42",
    "/42\x00",
    "\x00",
    "/42\n",
    "/\u0661\u0662\u0663",
    "/\uff14\uff12",
    "/straße/日本語/🦆",
    "/\ud800",
    "/50%25/4%32",
    "/42?page=7",
    "/-42",
]


@pytest.mark.parametrize(("path", "expected"), IDS.items())
def test_ids_are_folded(path: str, expected: str) -> None:
    assert template(path) == expected


@pytest.mark.parametrize("path", KEPT)
def test_everything_else_stays(path: str) -> None:
    assert template(path) == path


@given(st.text(st.one_of(st.sampled_from("/0af-_|{}.:\x00\n"), st.characters())))
def test_a_template_is_its_own_template_and_keeps_the_segments(path: str) -> None:
    once = template(path)
    assert template(once) == once
    segments = list(zip(path.split("/"), once.split("/"), strict=True))
    assert all(after in (before, "{id}") for before, after in segments)


def test_a_path_of_a_megabyte_is_no_trouble() -> None:
    assert template("/" + "a1" * 500_000) == "/{id}"
    assert template("/a" * 500_000) == "/a" * 500_000
