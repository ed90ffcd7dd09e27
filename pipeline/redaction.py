"""Credentials never reach a log, a status, a result or an error text.

Everything that shows a URL calls `redact_url`; text that another program wrote about a URL goes through
`redact_secrets_of`.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

HIDDEN = "***"

_SECRET_NAME = r"[a-z0-9._-]*(?:pass|pwd|token|key|secret|auth|sig|credential|session)[a-z0-9._-]*="
_PARAMETER = re.compile(rf"(?i)(?<![a-z0-9])({_SECRET_NAME})([^&]*)")
_PARAMETER_IN_TEXT = re.compile(rf"(?i)(?<![a-z0-9])({_SECRET_NAME})[^\s&;#'\"]+")
# Up to the last @ of the word if a colon precedes it: people write / ? # @ into passwords without escaping them.
_USER_AND_PASSWORD_IN_TEXT = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@:]*:[^\s'\"]*@")
_USER_IN_TEXT = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@'\"]*@")
_SHORTEST_WORD = 4
"""characters; a shorter secret may be part of any word, so it is replaced only beside its user or parameter"""


def redact_url(url: str) -> str:
    """A URL without its user, its password and the values of secret parameters; any other name unchanged.

    Bytes of a file name that are not UTF-8 become escapes such as `\\xe9`, so that the text can be encoded.

    The user and the password reach to the last @, if an @ or a colon stands in front of the first / ? or #, if the host
    is followed by ? or #, or if the URL is one of Redis: a password may hold any character without being escaped.
    Hiding too much of an odd URL is better than showing a part of a password.
    """
    url = _printable(url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    if _credentials(url):
        rest = f"{HIDDEN}@{rest.rpartition('@')[2]}"
    shown = _PARAMETER.sub(rf"\g<1>{HIDDEN}", rest)
    return f"{scheme}://{shown}"


def redact_text(text: str) -> str:
    """Text with the user, the password and the secret parameters of every URL in it hidden."""
    text = _printable(text)
    text = _USER_AND_PASSWORD_IN_TEXT.sub(rf"\g<1>{HIDDEN}@", text)
    text = _USER_IN_TEXT.sub(rf"\g<1>{HIDDEN}@", text)
    return _PARAMETER_IN_TEXT.sub(rf"\g<1>{HIDDEN}", text)


def redact_secrets_of(url: str, text: str) -> str:
    """Text about `url` by another program, with the secrets of `url` hidden wherever they stand, escaped or not.

    Empty if user or password hold a character that ends them for a parser, or that is escaped where they are quoted:
    which parts the other program took for host, port or path, and how it shows them, cannot be known.
    """
    credentials = _credentials(url)
    if re.search(r"[/?#\s'\"\\]", credentials):
        return ""
    text = text.replace(url, redact_url(url))
    for form in _forms(credentials):
        text = text.replace(f"{form}@", f"{HIDDEN}@")
    secrets = [credentials.partition(":")[2]]
    for name, value in _PARAMETER.findall(url.partition("://")[2]):
        secrets.append(value)
        for form in _forms(value):
            text = text.replace(f"{name}{form}", f"{name}{HIDDEN}")
    for secret in secrets:
        for form in _forms(secret):
            if len(form) >= _SHORTEST_WORD:
                text = text.replace(form, HIDDEN)
    return redact_text(text)


def _printable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _credentials(url: str) -> str:
    """`user:password` of a URL as written, or an empty string.

    An @ after the first / can belong to the path of a camera or of a socket, but not to a redis:// URL.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    has_path = rest[len(authority) :].startswith("/")
    is_redis = scheme.lower() in {"redis", "rediss", "unix"} and authority != ""
    if "@" in authority or ":" in authority or is_redis or not has_path:
        return rest.rpartition("@")[0]
    return ""


def _forms(secret: str) -> set[str]:
    """The ways in which other programs write it: as given, unescaped, escaped."""
    return {form for form in (secret, unquote(secret), quote(secret), quote(unquote(secret), safe="")) if form}
