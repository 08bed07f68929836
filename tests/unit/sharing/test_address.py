"""URLs of stores: what they may be, and that no password is shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from m31a_mp.sharing.address import check_url, shown_url
from m31a_mp.sharing.store import open_store
from servers import QUOTED

SERVERS = [
    f"redis://me:{QUOTED}@host:6379/2",
    f"rediss://:{QUOTED}@host/0?ssl_cert_reqs=none",
    f"unix://me:{QUOTED}@/run/valkey.sock?db=1",
    f"valkey://:{QUOTED}@127.0.0.1",
    f"valkeys://:{QUOTED}@127.0.0.1",
    f"redis://host?password={QUOTED}",
    "redis://host?password=p@ss",
    f"REDIS://:{QUOTED}@host",
]


@pytest.mark.parametrize("url", SERVERS)
def test_password_is_in_no_text(url: str) -> None:
    store = open_store(url)
    for text in (shown_url(url), store.url, repr(store)):
        assert "ss" not in text.replace("rediss", "")
        assert "me" not in text
        assert "w0rd" not in text


@pytest.mark.parametrize(
    "url",
    [
        "redis://:pa:ss/wo@host:x",
        "redis://:pass@[host",
        "redis://:pass",
        "redis://:pa@ss?pa@host",
        "unix://:pass@h?db=pass",
    ],
)
def test_password_is_in_no_error(url: str) -> None:
    with pytest.raises(ValueError, match=r"redis://USER:PASSWORD@HOST|wrong value of 'db'") as found:
        open_store(url)
    told = str(found.value).replace("PASSWORD", "").replace("USER", "")
    assert "pa" not in told.replace("special characters percent", "").lower()
    assert found.value.__cause__ is None


@pytest.mark.parametrize(
    "url", ["redis:/:pass@host", " redis://:pass@host", "Valkey:pass@host", "file://me:pass@host/x"]
)
def test_mistyped_url_is_no_directory_with_a_password_in_its_name(url: str) -> None:
    with pytest.raises(ValueError, match=r"begins with|three slashes") as found:
        check_url(url)
    assert "pass" not in str(found.value)


def test_option_that_may_be_of_a_password_is_not_shown() -> None:
    with pytest.raises(ValueError, match="percent-encoded") as found:
        open_store("redis://:7?pass=x@host").sessions()  # the question mark belongs to the password
    assert "pass" not in str(found.value)


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("redis://:secret@h?foo=1", "foo"),
        ("redis://h?pasword=secret", "pasword"),
        ("redis://h?db=1&decode_responses=1", "decode_responses"),
        ("redis://h?ssl_cert_reqs=none", "ssl_cert_reqs"),  # without TLS
        ("valkeys://h?ssl_cert_req=none", "ssl_cert_req"),
        ("unix:///run/socket?socket_keepalive=1", "socket_keepalive"),
        ("redis://:secret@h?socket_timeout=long", "socket_timeout"),
        ("unix:///run/socket?db=first", "db"),
        ("redis://h?", ""),
        ("redis://h?socket_keepalive=1&client_name=x&health_check_interval=1&max_connections=9", ""),
        ("rediss://h?ssl_ca_certs=/x&ssl_check_hostname=no&ssl_min_version=771", ""),
    ],
)
def test_option_that_is_wrong_is_named_without_the_password(url: str, option: str) -> None:
    if not option:
        open_store(url)
        return
    with pytest.raises(ValueError, match=f"'{option}'") as found:
        open_store(url)
    assert "secret" not in str(found.value)
    assert found.value.__cause__ is None


@pytest.mark.parametrize("url", ["redis://h/metrics", "valkeys://:secret@h:6379/1/2", "redis://h/-1?db=1"])
def test_database_that_is_not_a_number_is_refused(url: str) -> None:
    with pytest.raises(
        ValueError, match=r"^the URL rediss?://\.\.\. of a store has a database that is not"
    ) as found:
        open_store(url)
    assert "secret" not in str(found.value)
    for good in ("redis://h", "redis://h/", "redis://h/2", "redis://h:6379/2/", "unix:///run/socket"):
        open_store(good)


def test_slash_that_may_be_of_a_password_begins_no_database() -> None:
    with pytest.raises(ValueError, match="percent-encoded") as found:
        open_store("redis://me/secret@h")  # urlsplit takes `me` for the host
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(
    "place",
    ["cache:6379", "127.0.0.1:6379", "[::1]:6379", "cache:6379/2", "me:secret@cache:6379", ":secret@cache"],
)
def test_place_of_a_server_without_a_scheme_is_no_directory(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"redis://.*, or the directory \./") as found:
        check_url(place)
    assert "secret" not in str(found.value)
    assert os.listdir(tmp_path) == []
    for directory in (Path(place), f"./{place}"):
        assert check_url(directory) == str(tmp_path / place)
    (tmp_path / place).mkdir(parents=True)
    assert check_url(place) == str(tmp_path / place)


@pytest.mark.parametrize("name", ["a", "a.b", "a:b", "a:1b", "a/b:1", "C:", "12:34:56", "me@host", "a:1/b"])
def test_other_names_with_colons_are_directories(name: str) -> None:
    assert check_url(name) == os.path.abspath(name)


def test_directories_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    there = str(tmp_path / "a b")
    for url in ("a b", there, Path("a b"), f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b"):
        assert check_url(url) == there
        assert open_store(str(url)).url == there


def test_database_tells_two_stores_of_one_server_apart() -> None:
    for url in ("unix:///run/valkey.sock?db=2", "unix:///run/valkey.sock?socket_timeout=9&db=2"):
        assert shown_url(url) == open_store(url).url == "unix:///run/valkey.sock?db=2"
    assert shown_url("redis://host?password=x&db=2&y=z") == "redis://host?db=2"
    assert shown_url("redis://host?db=2x") == "redis://host"


@pytest.mark.parametrize("url", ["", "\0", "http://host", "s3://bucket", "file://host/x", "file://x"])
def test_what_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"store|directory"):
        check_url(url)


@pytest.mark.parametrize("url", [None, 7, b"/tmp"])
def test_wrong_types_are_refused(url: object) -> None:
    with pytest.raises(TypeError, match="must be a str"):
        check_url(url)  # type: ignore[arg-type]


@pytest.mark.parametrize("days", ["0", "-1", "x", "nan", "1e9"])
def test_wrong_expiry_is_refused(days: str) -> None:
    with pytest.raises(ValueError, match="number of days"):
        open_store(f"redis://host?expire_days={days}")
