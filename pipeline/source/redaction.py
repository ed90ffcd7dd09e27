"""Credentials never reach a log, a status or an error text."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

HIDDEN = "***"

# Up to the last @ of the word when a colon precedes it: people put unescaped / ? # @ into passwords.
# Hiding too much of an odd URL is better than showing a part of a password.
_USER_AND_PASSWORD = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@:]*:[^\s'\"]*@")
_USER = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@'\"]*@")
_PARAMETER = re.compile(
    r"(?i)(?<![a-z0-9])([a-z0-9._-]*(?:pass|pwd|token|key|secret|auth|sig|credential|session)[a-z0-9._-]*=)[^\s&;#'\"]+"
)


def redact(text: str) -> str:
    """The text with user, password and secret parameters of every URL in it replaced by `***`.

    Bytes of a file name that are not UTF-8 become escapes such as `\\xe9`, so that the text can be encoded.
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = _USER_AND_PASSWORD.sub(rf"\g<1>{HIDDEN}@", text)
    text = _USER.sub(rf"\g<1>{HIDDEN}@", text)
    return _PARAMETER.sub(rf"\g<1>{HIDDEN}", text)


def redact_secrets_of(source: str, text: str) -> str:
    """`redact(text)`, and the password of `source` replaced wherever else it stands (FFmpeg quotes parts of URLs)."""
    try:
        password = urlsplit(source).password
    except ValueError:
        password = None
    text = redact(text)
    for secret in {password, unquote(password)} if password else ():
        text = text.replace(secret, HIDDEN)
    return text
