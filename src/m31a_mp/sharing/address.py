"""The URL of a store: what it may be, and how it is shown."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

_SERVERS = ("redis", "rediss", "unix", "valkey", "valkeys")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# A directory of such a name would show the password.
_MISTYPED = re.compile(rf"\s*({'|'.join(_SERVERS)}):", re.IGNORECASE)


def check_url(url: str | os.PathLike[str]) -> str:
    """Return a URL if it can name a store. A relative path is made absolute.

    Raises:
        TypeError: The URL is neither a string nor a path.
        ValueError: The URL names no store. The message has no password.
    """
    if not isinstance(url, str | os.PathLike) or not isinstance(text := os.fspath(url), str):
        raise TypeError(f"the URL of a store must be a str, not {type(url).__name__}")
    if not text or "\0" in text:
        raise ValueError("the URL of a store, or the path of a directory, is empty or has a NUL")
    scheme = _scheme(text)
    if scheme and scheme not in (*_SERVERS, "file"):
        known = ", ".join(f"{name}://" for name in (*_SERVERS, "file"))
        raise ValueError(f"{scheme}:// is no store of states; known are {known}, and paths of directories")
    if not is_server(text) and (mistyped := _MISTYPED.match(text)):
        raise ValueError(
            f"the URL of a store begins with {mistyped[1]}://, the path of a directory with ./ or /"
        )
    return text if is_server(text) else directory_of(text)


def is_server(url: str) -> bool:
    """Whether a URL names a server, not a directory."""
    return _scheme(url) in _SERVERS


def directory_of(url: str) -> str:
    """Return the absolute path of the directory that a URL names.

    Raises:
        ValueError: The URL names no directory of this machine.
    """
    if not _scheme(url):
        return os.path.abspath(url)
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in {"", "localhost"} or not os.path.isabs(path):
        raise ValueError(
            "file:// names no directory of this machine; file:///DIRECTORY does, with three slashes"
        )
    return path


def shown_url(url: str) -> str:
    """Return a URL for messages, without user, password and options."""
    if not is_server(url):
        return url
    scheme, _, rest = url.partition("://")
    place, _, options = rest.partition("?")
    # A question mark may be a part of a password that was not encoded, an at sign a part of an option.
    return f"{scheme}://..." if "@" in options else f"{scheme}://{place.rpartition('@')[2]}"


def _scheme(url: str) -> str:
    found = _SCHEME.match(url)
    return found[1].lower() if found else ""
