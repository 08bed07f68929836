"""The URL of a store: what it may be, and how it is shown."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

_SERVERS = ("redis", "rediss", "unix", "valkey", "valkeys")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# A directory of such a name would show the password.
_MISTYPED = re.compile(rf"\s*({'|'.join(_SERVERS)}):", re.IGNORECASE)
_HOST = r"(\w[\w.-]*|\[[0-9A-Fa-f:.]+\])"
_PLACE = re.compile(rf"({_HOST}:\d+|[^/]*:[^/]*@{_HOST}(:\d+)?)(/\d*)?")


def check_url(url: str | os.PathLike[str]) -> str:
    """Return a URL if it can name a store. A relative path is made absolute.

    A text that looks like the address of a server names a directory only if that is there: it would be made
    otherwise, perhaps with a password in its name, and nobody would miss the server.

    Raises:
        TypeError: The URL is neither a string nor a path.
        ValueError: The URL names no store. The message has no password.
    """
    is_path = isinstance(url, os.PathLike)
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
    if not is_path and _PLACE.fullmatch(text) and not os.path.isdir(text):
        place = text.rpartition("@")[2]
        advice = f"redis://{'USER:PASSWORD@' if '@' in text else ''}{place}, or the directory ./"
        raise ValueError(f"the URL of a store on {place} begins with a scheme: {advice}{place}")
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
    """Return a URL for messages, without user and password. Of the options, only a database stays."""
    if not is_server(url):
        return url
    scheme, _, rest = url.partition("://")
    place, _, options = rest.partition("?")
    if not is_clear(options):
        return f"{scheme}://..."
    database = re.search(r"(?:^|&)(db=\d+)(?:&|$)", options)
    return f"{scheme}://{place.rpartition('@')[2]}" + (f"?{database[1]}" if database else "")


def is_clear(options: str) -> bool:
    """Whether the options of a URL are options. With an at sign, they may be the end of a password.

    A question mark in a password that was not encoded begins what looks like the options.
    """
    return "@" not in options


def _scheme(url: str) -> str:
    found = _SCHEME.match(url)
    return found[1].lower() if found else ""
