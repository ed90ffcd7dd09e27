"""Credentials are removed from URLs and from messages of other programs about URLs."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import pytest

from pipeline.bus.connection import connect
from pipeline.errors import BusError
from pipeline.redaction import redact_secrets_of, redact_text, redact_url
from pipeline.source.container import failure_text

Run = Callable[..., tuple[int, str, str]]

PASSWORDS = ["S3cretWord", *(f"S3cret{mark}Word" for mark in "#/?@: %'"), "S3cret'Word\""]
"""each holds a character that means something in a URL or a shell, between two parts that must not be shown"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtsp://joe:secret@cam/1", "rtsp://***@cam/1"),
        ("rtsp://joe@cam/1", "rtsp://***@cam/1"),
        ("open 'RTSPS://joe:p@ss/w#?@cam/1' failed", "open 'RTSPS://***@cam/1' failed"),
        ("http://cam/v?user=joe&password=secret&n=1", "http://cam/v?user=joe&password=***&n=1"),
        ("https://cam/v?n=1&access_token=secret#t", "https://cam/v?n=1&access_token=***#t"),
        ("https://cam/v?X-Amz-Signature=secret", "https://cam/v?X-Amz-Signature=***"),
        ("rtsp://cam/user=joe_password=secret_channel=1", "rtsp://cam/user=joe_password=***"),
        ("rtsp://cam:554/stream?n=1", "rtsp://cam:554/stream?n=1"),
        ("from rtsp://a:b@c/ to rtsp://d:e@f/", "from rtsp://***@c/ to rtsp://***@f/"),
        ("d/caf\udce9.mp4 is no video", r"d/caf\xe9.mp4 is no video"),
    ],
)
def test_redact(text: str, expected: str) -> None:
    assert redact_text(text) == expected


def test_the_password_is_hidden_wherever_it_is_quoted() -> None:
    source = "rtsp://joe:s%40cret@cam/1"
    assert redact_secrets_of(source, "no host s@cret, s%40cret") == "no host ***, ***"


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("escape", [False, True], ids=["as typed", "escaped"])
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://joe:{}@cam:554/1?n=1", "rtsp://***@cam:554/1?n=1"),
        ("http://:{}@cam/v", "http://***@cam/v"),
        ("redis://:{}@127.0.0.1:6379/0", "redis://***@127.0.0.1:6379/0"),
        ("unix://me:{}@/run/redis.sock", "unix://***@/run/redis.sock"),
        ("http://cam/v?user=joe&password={}", "http://cam/v?user=joe&password=***"),
        ("unix:///run/redis.sock?db=1&password={}", "unix:///run/redis.sock?db=1&password=***"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str, escape: bool, password: str) -> None:
    written = quote(password, safe="") if escape else password
    if "?" in url.partition("{")[0]:
        written = written.replace("&", "%26")
    assert redact_url(url.format(written)) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://S3cret#Word@127.0.0.1:6379/0", "redis://***@127.0.0.1:6379/0"),
        ("redis://S3cret/Word@127.0.0.1:6379/0", "redis://***@127.0.0.1:6379/0"),
        ("REDISS://S3cret?Word@host", "REDISS://***@host"),
        ("unix://S3cret/Word@/run/redis.sock", "unix://***@/run/redis.sock"),
        ("rtsp://S3cret#Word@cam/1", "rtsp://***@cam/1"),
        ("unix:///run/a@b.sock", "unix:///run/a@b.sock"),
        ("http://host/@user/v.mp4", "http://host/@user/v.mp4"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
    ],
)
def test_a_password_without_a_colon_before_it_is_hidden(url: str, shown: str) -> None:
    assert redact_url(url) == shown
    assert "Word" not in redact_secrets_of(url, f"cannot connect to {url}")


@pytest.mark.parametrize("name", ["clip.mp4", "/data/a@b:c/clip.mp4", "token=1.mp4", "webcam:0"])
def test_text_that_is_not_a_url_is_unchanged(name: str) -> None:
    assert redact_url(name) == name


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_text_of_another_program_about_a_url_shows_no_part_of_its_password(scheme: str, password: str) -> None:
    url = f"{scheme}://joe:{password}@cam/1"
    quoted = [url, password, quote(password), f"joe:{password}@cam"]
    for part in quoted:
        shown = redact_secrets_of(url, f"cannot open {part}")
        assert password not in shown
        assert quote(password) not in shown
    line = failure_text(url, "cannot be opened", ValueError(f"Port could not be cast to integer: {url!r}"), url, 5.0)
    assert "S3cret" not in line
    assert "\n" not in line


def test_a_short_password_does_not_hide_other_words() -> None:
    text = "cannot open rtsp://a:e@cam/1: Server returned 404 for a:e@cam"
    assert (
        redact_secrets_of("rtsp://a:e@cam/1", text) == "cannot open rtsp://***@cam/1: Server returned 404 for ***@cam"
    )


@pytest.mark.parametrize("password", [word for word in PASSWORDS if set(word) & set("#/?")])
def test_the_error_of_an_invalid_redis_url_does_not_contain_its_password(password: str) -> None:
    with pytest.raises(BusError, match="a password are written as %2F %23 %3F %40") as caught:
        connect(f"redis://:{password}@127.0.0.1:6379/0").ping()
    assert "S3cret" not in str(caught.value)
    assert "Word" not in str(caught.value)
