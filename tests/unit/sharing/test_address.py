"""URLs of stores: what they may be, and that no password is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from m31a_mp import StoreError
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
    "redis://:p@ss?w0rd@host",
    "redis://host?password=p@ss",
]


@pytest.mark.parametrize("url", SERVERS)
def test_password_is_in_no_text(url: str) -> None:
    store = open_store(url)
    for text in (shown_url(url), store.url, repr(store)):
        assert "ss" not in text.replace("rediss", "")
        assert "me" not in text
        assert "w0rd" not in text


@pytest.mark.parametrize(
    "url", ["redis://:pa:ss/wo@host:x", "redis://:pass@[host", "redis://:pass", "unix://:pass@h?db=pass"]
)
def test_password_is_in_no_error(url: str) -> None:
    with pytest.raises(ValueError, match="redis://USER:PASSWORD@HOST") as found:
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


def test_option_that_is_not_known_is_not_shown() -> None:
    with pytest.raises(StoreError, match="option") as found:
        open_store("redis://:7?pass=x@host").sessions()  # the question mark belongs to the password
    assert "pass" not in str(found.value)


def test_directories_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    there = str(tmp_path / "a b")
    for url in ("a b", there, Path("a b"), f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b"):
        assert check_url(url) == there
        assert open_store(str(url)).url == there


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
