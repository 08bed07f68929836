"""A store in a Redis or Valkey server: two hashes for each session, under one hash tag.

    m31a_mp:{<session id>}:sites     site id -> number, a space, the header
    m31a_mp:{<session id>}:states    site id -> the state

The session id is percent-encoded. A script of the server replaces both in one step, if the number is greater.
Both keys expire together, after the last share of any site.
"""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode
from weakref import WeakSet

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from m31a_mp.errors import StoreError
from m31a_mp.metrics.site import is_id
from m31a_mp.session.paths import is_session_id
from m31a_mp.sharing.address import is_clear, shown_url
from m31a_mp.sharing.state import MAX_HEADER_BYTES, BadStateError, Header, State
from m31a_mp.system import fork

_SECONDS = 3.0  # for a connection, and for the next bytes of an answer
_TIMES = 10  # so many times as long for a whole answer: a server may send one byte now and then
_SLOWEST = 64 * 1024  # bytes per second of the slowest line: so much longer may all of this take
_PREFIX = "m31a_mp:{"
_SITES = "}:sites"
_STATES = "}:states"
_MOST_DAYS = 36_500
_DAY_MS = 86_400_000
_SCHEMES = {"valkey": "redis", "valkeys": "rediss"}
# Others of redis-py change what its methods return, or are objects.
_OPTIONS = {
    "client_name",
    "db",
    "expire_days",
    "health_check_interval",
    "max_connections",
    "password",
    "socket_connect_timeout",
    "socket_timeout",
    "username",
}
_TCP_OPTIONS = {"socket_keepalive"}
_TLS_OPTIONS = {
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_keyfile",
    "ssl_min_version",
    "ssl_password",
}
_MORE_OPTIONS = {"redis": _TCP_OPTIONS, "rediss": _TCP_OPTIONS | _TLS_OPTIONS, "unix": set[str]()}
_AT_ONCE = 64  # states in one answer of the server, which keeps it free for others in between

# A state that is damaged has no number, and is replaced. Numbers stay far below 2**53, where Lua's are exact.
_PUT = """
local there = redis.call('HGET', KEYS[1], ARGV[1])
if there then
  local number = tonumber(string.match(there, '^(%d+) '))
  local new = tonumber(ARGV[2])
  if number and (number > new or (number == new and string.match(there, '"crc32":"(%x+)"') ~= ARGV[3])) then
    return there
  end
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[5])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return false
"""

Answer = TypeVar("Answer")


class ServerStore:
    """The states of sites in a server. See `Store`. One thread at a time may use an object."""

    def __init__(self, url: str) -> None:
        """See `open_store`.

        Raises:
            ValueError: The URL is not valid. The message does not show it: it may have a password.
        """
        scheme, _, rest = url.partition("://")
        place, _, query = rest.partition("?")
        scheme = _SCHEMES.get(scheme.lower(), scheme.lower())
        options = dict(parse_qsl(query, keep_blank_values=True))
        if unknown := [name for name in options if name not in _OPTIONS | _MORE_OPTIONS[scheme]]:
            raise _bad_url(scheme, query, f"has no option {unknown[0]!r:.80}")
        database = place.partition("/")[2].strip("/")
        if scheme != "unix" and database and not database.isdecimal():  # redis-py would take database 0
            raise _bad_url(scheme, database + query, "has a database that is not a number")
        options.pop("health_check_interval", None)  # each share is a check; see _connected
        self._limit = _Limit(options.get("socket_timeout"))
        self.url = shown_url(url)
        self._expire_ms = int(_days(options.pop("expire_days", "30")) * _DAY_MS)
        try:
            client = redis.Redis.from_url(
                f"{scheme}://{place}?{urlencode(options)}",
                # What the URL says wins over these.
                socket_timeout=_SECONDS,
                socket_connect_timeout=_SECONDS,
                # Once more, at once: the server may have closed the connection since the last share.
                retry=Retry(NoBackoff(), 1, (redis.exceptions.ConnectionError,)),
                protocol=2,
                redis_connect_func=partial(_connected, self._limit),
            )
        except Exception as error:
            option = re.match(r"Invalid value for '(\w+)'", str(error))
            raise _bad_url(scheme, query, f"has a wrong value of {option[1]!r}" if option else "") from None
        self._client: Any = client
        self._put = self._client.register_script(_PUT)
        # What was listed last, of one session. Most of it stays, and is not parsed again.
        self._listed: tuple[str, dict[bytes, _Listed]] = ("", {})

    def put(self, session_id: str, state: State) -> Header | None:
        """See `Store.put`."""
        header = state.header
        line = header.line()
        arguments: list[Any] = [
            header.site,
            header.number,
            header.crc32,
            line.rstrip(),
            line + state.body,
            self._expire_ms,
        ]
        there = self._ask(session_id, partial(self._put, _keys(session_id), arguments))
        if there is None:
            return None
        try:
            return _header(there)
        except BadStateError as error:
            raise StoreError(
                f"{self.url}: the state of this site is not replaced: {error}", self.url
            ) from None

    def headers(self, session_id: str) -> dict[str, Header | str]:
        """See `Store.headers`."""
        keys = _keys(session_id)
        lines: dict[bytes, bytes] = self._ask(session_id, partial(self._client.hgetall, keys[0]))
        before = self._listed[1] if self._listed[0] == session_id else {}
        listed = {
            name: known if (known := before.get(name)) and known.line == line else _listed(name, line)
            for name, line in lines.items()
        }
        self._listed = session_id, listed
        return {known.site: known.header for known in listed.values()}

    def get(self, session_id: str, sites: list[str]) -> dict[str, bytes]:
        """See `Store.get`."""
        found: dict[str, bytes] = {}
        for start in range(0, len(sites), _AT_ONCE):
            some = sites[start : start + _AT_ONCE]
            values = self._ask(session_id, partial(self._client.hmget, _keys(session_id)[1], some))
            found |= {site: value for site, value in zip(some, values, strict=True) if value is not None}
        return found

    def sessions(self) -> list[str]:
        """See `Store.sessions`."""
        pattern = f"{_PREFIX}*{_SITES}"
        keys: set[bytes] = set()
        cursor = None
        while cursor != 0:
            question = partial(self._client.scan, cursor or 0, match=pattern, count=1000)
            cursor, some = self._ask("", question)
            keys.update(some)
        names = {unquote(key[len(_PREFIX) : -len(_SITES)].decode("utf-8", "replace")) for key in keys}
        # Other programs may have keys of this form.
        return sorted(name for name in names if is_session_id(name) and _keys(name)[0].encode() in keys)

    def close(self) -> None:
        """See `Store.close`."""
        self._client.close()
        self._client.connection_pool.disconnect()

    def __repr__(self) -> str:
        return f"<ServerStore {self.url}>"

    def _ask(self, session_id: str, question: Callable[[], Answer]) -> Answer:
        self._limit.start()
        try:
            return question()
        except redis.exceptions.TimeoutError:
            raise StoreError(f"{self.url}: no answer within {self._limit.seconds:g} s", self.url) from None
        except redis.exceptions.RedisError as error:
            raise StoreError(f"{self.url}: {_reason(error, session_id)}", self.url) from None
        except (OSError, ValueError) as error:  # of the resolver, of TLS
            raise StoreError(f"{self.url}: {error}", self.url) from None


def _bad_url(scheme: str, options: str, reason: str) -> ValueError:
    """Return an error that shows no part of the URL: a password may stand in the place of any of them."""
    if reason and is_clear(options):
        return ValueError(f"the URL {scheme}://... of a store {reason}")
    return ValueError(
        f"{scheme}://... cannot be the URL of a server. It is redis://USER:PASSWORD@HOST:PORT/DATABASE, with "
        "special characters percent-encoded"
    )


def _days(text: str) -> float:
    """Return the days after which the server forgets a session that no site shares any more."""
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days <= _MOST_DAYS:
        raise ValueError(f"expire_days must be a number of days above 0, at most {_MOST_DAYS}")
    return days


def _keys(session_id: str) -> list[str]:
    name = quote(session_id, safe="")
    return [f"{_PREFIX}{name}{_SITES}", f"{_PREFIX}{name}{_STATES}"]


class _Listed(NamedTuple):
    """What the server lists of a site.

    Attributes:
        line: The number and the header.
        site: The id of the site.
        header: The header, or why there is none.
    """

    line: bytes
    site: str
    header: Header | str


def _listed(name: bytes, line: bytes) -> _Listed:
    site = name.decode("ascii", "replace")
    try:
        header = _header(line)
        if header.site != site or not is_id(site):
            raise BadStateError("it is the state of another site")
    except BadStateError as error:
        return _Listed(line, site, str(error))
    return _Listed(line, site, header)


def _header(line: bytes) -> Header:
    number, _, header = line.partition(b" ")
    if not number.isdigit() or len(header) > MAX_HEADER_BYTES:
        raise BadStateError("it is not a state of a session")
    return Header.parse(header)


def _reason(error: Exception, session_id: str) -> str:
    """Return what is wrong, in a clause. The messages of redis-py contain no password."""
    text = str(error)
    if isinstance(error, (redis.exceptions.AuthenticationError, redis.exceptions.AuthorizationError)):
        return f"the server refuses the user or the password: {text}"
    if "WRONGTYPE" in text:
        keys = " or ".join(_keys(session_id))
        return f"{keys} has a value of another type; delete it, or use another database"
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return "the server's memory is full (maxmemory)"
    # As "Error 111 connecting to HOST. Connection refused."; an error of TLS stands in place of the number.
    if found := re.fullmatch(r"Error (.+?) connecting to .+?(?:\. (.+?))?\.?", text):
        text = (found[2] or found[1]).lower()
    return text.partition("\n")[0].rstrip(".")


class _Limit:
    """The time for a question to the server and its answer. It grows with their size.

    Attributes:
        seconds: The longest wait for the next bytes of an answer, but for the time that the line needs.
    """

    def __init__(self, asked: str | None) -> None:
        """`asked` is the URL's option `socket_timeout`."""
        try:
            self.seconds = max(float(asked), 0.0) if asked else _SECONDS
        except ValueError:
            self.seconds = _SECONDS  # redis-py refuses the option
        self._began = math.inf
        self._on_line = 0.0

    def start(self) -> None:
        """Begin a question."""
        self._began, self._on_line = time.monotonic(), 0.0

    def check(self) -> None:
        """Raise TimeoutError if the answer takes too long."""
        if time.monotonic() > self._began + _TIMES * self.seconds + self._on_line:
            raise TimeoutError

    def add(self, size: int) -> float:
        """Give the line its time for bytes. Return the longest wait for the next ones."""
        self._on_line += size / _SLOWEST
        return self.seconds + self._on_line


class _Limited:
    """A socket with that limit. Its own timeout begins again with each byte of an answer."""

    def __init__(self, inner: socket.socket, limit: _Limit) -> None:
        self._inner = inner
        self._limit = limit

    def sendall(self, data: bytes) -> None:
        # The system takes megabytes at once: their time on the line is a part of the wait for the answer.
        self._inner.settimeout(self._limit.add(len(data)))
        self._inner.sendall(data)

    def recv(self, *arguments: int) -> bytes:
        self._limit.check()
        data = self._inner.recv(*arguments)
        self._limit.add(len(data))
        return data

    def recv_into(self, *arguments: Any) -> int:
        self._limit.check()
        size = self._inner.recv_into(*arguments)
        self._limit.add(size)
        return size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


# --- Forks --------------------------------------------------------------------------------------------

_sockets: WeakSet[socket.socket] = WeakSet()


def _connected(limit: _Limit, connection: Any) -> None:
    """Limit the answers of a new connection and note its socket, then log in as usual.

    With health checks, `on_connect` would check the new connection, and come back here, without end.
    """
    inner = connection._sock  # noqa: SLF001  # redis-py has no other way to it
    _sockets.add(inner)
    connection._sock = _Limited(inner, limit)  # noqa: SLF001
    connection.on_connect()


@fork.after_in_child("files")
def _close_sockets() -> None:
    """Close the parent's sockets without a word to the server: the parent goes on using the connections."""
    for found in list(_sockets):
        fd = found.detach()
        if fd >= 0:
            os.close(fd)
    _sockets.clear()
