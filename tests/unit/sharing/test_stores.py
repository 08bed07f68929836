"""Stores of both kinds keep the newest state of each site, and contain what is wrong in them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import m31a_mp
from m31a_mp import StoreError
from m31a_mp.metrics.site import Place, Site, new_id
from m31a_mp.sharing import server as server_module
from m31a_mp.sharing.server import ServerStore
from m31a_mp.sharing.state import Header, State
from m31a_mp.sharing.store import Store, open_store
from servers import EMPTY, PASSWORD, QUOTED, Server, server_kind
from workers import Forked

A, B = new_id(), new_id()
PLACE = Place(131, "boot", "host")
SESSION = "ses{s}:*\N{SNOWMAN}"


def state(site: str, number: int, content: bytes = b"{}") -> State:
    return State.of(Site(site, number, PLACE), content)


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


def numbers(store: Store, session_id: str = SESSION) -> dict[str, int]:
    found = store.headers(session_id)
    return {site: header.number for site, header in found.items() if isinstance(header, Header)}


def test_newer_state_replaces_older_and_never_the_other_way(store: Store) -> None:
    assert store.put(SESSION, state(A, 2)) is None
    assert store.put(SESSION, state(B, 1)) is None
    assert numbers(store) == {A: 2, B: 1}
    assert store.put(SESSION, state(A, 10)) is None
    there = store.put(SESSION, state(A, 9))
    assert there
    assert (there.site, there.number, there.place) == (A, 10, PLACE)
    assert numbers(store) == {A: 10, B: 1}


def test_same_state_may_come_again_and_another_one_of_its_number_may_not(store: Store) -> None:
    assert store.put(SESSION, state(A, 2, b"one")) is None
    again = state(A, 2, b"one")
    assert store.put(SESSION, again) is None
    there = store.put(SESSION, state(A, 2, b"two"))
    assert there
    assert there.crc32 == again.header.crc32
    [data] = store.get(SESSION, [A]).values()
    assert State.parse(data) == again


def test_states_come_as_they_were_put(store: Store) -> None:
    states = {new_id(): os.urandom(i * 100) for i in range(100)}
    for site, content in states.items():
        assert store.put(SESSION, state(site, 1, content)) is None
    found = store.get(SESSION, [*states, new_id()])
    assert {site: State.parse(data).content() for site, data in found.items()} == states


def test_sessions_are_kept_apart_and_listed(store: Store) -> None:
    names = ["a", SESSION, "x" * 200, "%7B", "}:sites"]
    for i, name in enumerate(names):
        assert store.put(name, state(A, i + 1)) is None
    assert store.sessions() == sorted(names)
    assert [numbers(store, name) for name in names] == [{A: i + 1} for i in range(len(names))]
    assert store.headers("other") == {}


def test_error_of_a_directory_names_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, tmp_path / "none" / "such"):
        store = open_store(str(path))
        with pytest.raises(StoreError, match=str(path)):
            store.headers("s")
        with pytest.raises(StoreError, match=str(path)):
            store.sessions()
    with pytest.raises(StoreError, match="Not a directory"):
        open_store(str(file)).put("s", state(A, 1))


def test_damaged_file_is_told_and_replaced_by_the_next_share(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for garbage in (b"", b"garbage\n", b"\0" * 100_000, state(A, 5).data()[:-1]):
        store.put("s", state(A, 1))
        (tmp_path / "s" / f"{A}.state").write_bytes(garbage)
        assert isinstance(store.headers("s")[A], str)
        assert store.put("s", state(A, 2)) is None
        assert numbers(store, "s") == {A: 2}


def test_file_of_a_later_version_is_told_and_left_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("s", state(A, 1))
    file = tmp_path / "s" / f"{A}.state"
    later = file.read_bytes().replace(b'"m31a_mp_state":1', b'"m31a_mp_state":2')
    file.write_bytes(later)
    assert "version 2" in str(store.headers("s")[A])
    with pytest.raises(StoreError, match="version 2"):
        store.put("s", state(A, 2))
    assert file.read_bytes() == later


def test_other_files_in_the_directory_are_ignored(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("s", state(A, 1))
    for name in ("README", f".{A}.state.1.tmp", "x.state", f"{A}.state.bak"):
        (tmp_path / "s" / name).touch()
    (tmp_path / "empty").mkdir()
    assert numbers(store, "s") == {A: 1}
    assert store.sessions() == ["s"]


def test_what_is_no_regular_file_costs_only_itself(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("s", state(A, 1))
    other = tmp_path / "s" / f"{B}.state"
    for kind in ("directory", "FIFO", "link"):
        if kind == "directory":
            other.mkdir()
        elif kind == "FIFO":
            os.mkfifo(other)
        else:
            other.symlink_to(other)
        assert numbers(store, "s") == {A: 1}
        assert isinstance(store.headers("s")[B], str)
        assert store.get("s", [A, B]).keys() == {A}
        if kind == "directory":
            other.rmdir()
        else:
            other.unlink()
    os.mkfifo(other)
    assert store.put("s", state(B, 1)) is None
    assert numbers(store, "s") == {A: 1, B: 1}


def test_file_and_directory_of_another_user_cost_only_themselves(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for site in (A, B):
        store.put("s", state(site, 1))
    (tmp_path / "lost+found").mkdir(mode=0o700)
    (tmp_path / "lost+found" / f"{A}.state").touch()
    (tmp_path / "s").chmod(0o755)
    (tmp_path / "s" / f"{A}.state").chmod(0o644)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.getuid() and directory.name.startswith(
            ("pytest-", "test_", "popen-")
        ):
            directory.chmod(0o755)

    def other_user() -> None:
        os.setuid(65534)
        assert store.sessions() == ["s"]
        assert numbers(store, "s") == {A: 1}
        assert "Permission denied" in str(store.headers("s")[B])

    if os.getuid():
        pytest.skip("only root can become another user")
    with Forked(other_user) as child:
        assert child.wait() == 0


def test_names_that_can_be_no_session_are_not_listed(store: Store) -> None:
    store.put("s", state(A, 1))
    if isinstance(store, ServerStore):
        for name in ("a%2Fb", "%00", "", "x" * 201, "\udcff"):
            store._client.hset(f"m31a_mp:{{{name}}}:sites".encode(errors="surrogateescape"), A, "1 x")
    else:
        for other in ("a\\b", "x" * 201, os.fsdecode(b"\xff")):
            directory = os.path.join(store.url, other)
            os.mkdir(directory)
            os.mkfifo(os.path.join(directory, f"{A}.state"))
    assert store.sessions() == ["s"]


# --- Servers ------------------------------------------------------------------------------------------


def test_both_keys_expire_after_the_last_share(server: Server) -> None:
    server.do("FLUSHALL")
    store = open_store(f"{server.url}?expire_days=0.5")
    store.put("s", state(A, 1))
    for key in ("m31a_mp:{s}:sites", "m31a_mp:{s}:states"):
        assert 42_000_000 < server.do("PTTL", key) <= 43_200_000
        server.do("PEXPIRE", key, 1000)
    store.put("s", state(A, 1))
    assert server.do("PTTL", "m31a_mp:{s}:states") > 42_000_000


def test_garbage_in_the_hash_is_told_and_replaced(server: Server) -> None:
    server.do("FLUSHALL")
    store = open_store(server.url)
    for garbage in (b"", b"garbage", b"99 garbage", b"9" * 400, b"\xff\0"):
        server.do("HSET", "m31a_mp:{s}:sites", A, garbage)
        assert isinstance(store.headers("s")[A], str)
    server.do("HSET", "m31a_mp:{s}:sites", "no site", b"1 {}")
    server.do("HSET", "m31a_mp:{s}:sites", A, b"garbage")
    assert store.put("s", state(A, 1)) is None
    assert numbers(store, "s") == {A: 1}


def test_value_of_another_type_is_told_with_its_key(server: Server) -> None:
    server.do("FLUSHALL")
    store = open_store(server.url)
    server.do("SET", "m31a_mp:{s}:sites", "text")
    with pytest.raises(StoreError, match=r"m31a_mp:\{s\}:sites .* another type"):
        store.put("s", state(A, 1))
    with pytest.raises(StoreError, match="another type"):
        store.headers("s")
    server.do("DEL", "m31a_mp:{s}:sites")
    assert store.put("s", state(A, 1)) is None


@pytest.mark.parametrize("server_at", ["valkey"])
def test_wrong_password_is_told_without_it(server_at: str) -> None:
    with server_kind(server_at, "--save", "", "--requirepass", "p@ss/w:rd?") as server:
        assert open_store(server.url).put("s", state(A, 1)) is None
        for wrong in ("falsch", ""):
            store = open_store(f"unix://:{wrong}@{server.socket}")
            with pytest.raises(StoreError, match=r"password|Authentication") as found:
                store.put("s", state(A, 1))
            assert "falsch" not in str(found.value)


def test_full_memory_is_told_and_reading_goes_on(server: Server) -> None:
    server.do("FLUSHALL")
    store = open_store(server.url)
    store.put("s", state(A, 1))
    server.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.do("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(StoreError, match="memory is full"):
            store.put("s", state(A, 2))
        assert numbers(store, "s") == {A: 1}
    finally:
        server.do("CONFIG", "SET", "maxmemory", 0)
    assert store.put("s", state(A, 2)) is None


def test_cut_connection_is_made_again(server: Server) -> None:
    server.do("FLUSHALL")
    store = open_store(server.url)
    for number in range(1, 4):
        assert store.put("s", state(A, number)) is None
        server.do("CLIENT", "KILL", "TYPE", "normal")
    server.do("SCRIPT", "FLUSH")
    assert store.put("s", state(A, 9)) is None
    assert numbers(store, "s") == {A: 9}


def test_child_has_no_connection_and_leaves_the_parents_alone(server: Server) -> None:
    server.do("FLUSHALL")
    store = open_store(server.url)
    store.put("s", state(A, 1))

    def links() -> set[str]:
        found = set()
        for fd in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                found.add(os.readlink(f"/proc/self/fd/{fd}"))
        return {link for link in found if link.startswith("socket:")}

    before = links()

    def look() -> None:
        assert not links() & before

    assert before
    with Forked(look) as child:
        assert child.wait() == 0
    connected = server.do("INFO", "stats")["total_connections_received"]
    assert store.put("s", state(A, 2)) is None
    assert server.do("INFO", "stats")["total_connections_received"] == connected + 1  # the one that asks
    assert isinstance(store, ServerStore)


@pytest.mark.slow
def test_server_that_sends_a_byte_now_and_then_does_not_hold_up_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def send_slowly() -> None:
            with suppress(OSError):  # the listening socket is closed at the end of the test
                while True:
                    connection, _ = listening.accept()
                    with connection, suppress(OSError):
                        connection.sendall(b"+")
                        while True:
                            connection.sendall(b"a")
                            time.sleep(0.02)

        threading.Thread(target=send_slowly, daemon=True).start()
        store = open_store(f"redis://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(StoreError, match="no answer within"):
            store.headers("s")
        store.close()


@contextmanager
def line_to(server: Server, pause: float = 0.0, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A port that leads to a server, with a pause before each 64 KiB; its socket buffers are small."""

    def forward(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(64 * 1024):
                time.sleep(pause)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def connect(near: socket.socket) -> None:
        with suppress(OSError):
            near = tls.wrap_socket(near, server_side=True) if tls else near
            with near, socket.socket(socket.AF_UNIX) as far:
                far.connect(str(server.socket))
                there = threading.Thread(target=forward, args=(near, far), daemon=True)
                there.start()
                forward(far, near)
                there.join()

    def serve() -> None:
        with suppress(OSError):  # the listening socket is closed at the end of the test
            while True:
                threading.Thread(target=connect, args=(listening.accept()[0],), daemon=True).start()

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]


@pytest.mark.slow
def test_large_state_has_the_time_that_a_slow_line_needs(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes half a second each way. For a small one, the server has 0.1 s, and 0.5 s in all."""
    monkeypatch.setattr(server_module, "_SECONDS", 0.1)
    monkeypatch.setattr(server_module, "_TIMES", 5)
    large = state(A, 1, os.urandom(3 * 1024 * 1024))
    server.do("FLUSHALL")
    with line_to(server, 0.01) as port:
        store = open_store(f"redis://127.0.0.1:{port}")
        assert store.put("s", large) is None
        assert State.parse(store.get("s", [A])[A]) == large
        store.close()


def test_large_state_on_a_line_that_hangs_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_SECONDS", 0.1)
    monkeypatch.setattr(server_module, "_SLOWEST", 64 * 1024 * 1024)
    with line_to(server, 3600) as port:
        store = open_store(f"redis://127.0.0.1:{port}")
        with pytest.raises(StoreError, match="no answer within"):
            store.put("s", state(A, 1, os.urandom(8 * 1024 * 1024)))
        store.close()


# --- Ways to a server ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server with a password, and a user who has the rights that the document names, and no others."""
    with server_kind("valkey", *EMPTY, "--requirepass", PASSWORD) as made:
        document = (Path(m31a_mp.__file__).parent / "README.md").read_text()
        rights = re.search(r"`(~m31a_mp:[^`]*)`", document)
        assert rights
        made.do("ACL", "SETUSER", "me", "on", f">{PASSWORD}", *rights[1].split())
        yield made


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of this machine that nobody signed, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    files = tmp_path_factory.mktemp("tls") / "certificate", tmp_path_factory.mktemp("tls") / "key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return files


def is_whole(url: str) -> bool:
    """Whether a state comes back from a store as it was put there."""
    store, shared = open_store(url), state(A, 1, os.urandom(200_000))
    session_id = uuid.uuid4().hex
    try:
        assert store.put(session_id, shared) is None
        assert numbers(store, session_id) == {A: 1}
        return session_id in store.sessions() and State.parse(store.get(session_id, [A])[A]) == shared
    finally:
        store.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:{password}@localhost:{port}",
        "valkey://me:{password}@127.0.0.1:{port}/3",
        "redis://localhost:{port}?username=me&password={password}&db=4&client_name=site",
        "unix://:{password}@{path}?db=5",
        "unix://me:{password}@{path}",
        "unix://{path}?username=me&password={password}",
    ],
)
def test_server_is_reached_as_user_in_a_database(url: str, guarded: Server) -> None:
    with line_to(guarded) as port:
        assert is_whole(url.format(password=QUOTED, port=port, path=guarded.socket))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://127.0.0.1:{port}", "Authentication required"),
        ("redis://you:{password}@127.0.0.1:{port}", "refuses the user or the password"),
        ("redis://:{password}@127.0.0.1:{port}/99", "DB index is out of range"),
    ],
)
def test_server_that_refuses_is_told(url: str, told: str, guarded: Server) -> None:
    with line_to(guarded) as port, pytest.raises(StoreError, match=told) as found:
        is_whole(url.format(password=QUOTED, port=port))
    assert QUOTED not in str(found.value)
    assert PASSWORD not in str(found.value)


@pytest.mark.slow
def test_server_is_reached_by_tls_and_only_with_a_known_certificate(
    guarded: Server, certificate: tuple[Path, Path]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with line_to(guarded, tls=context) as port:
        server = f"//:{QUOTED}@localhost:{port}"
        assert is_whole(f"rediss:{server}?ssl_ca_certs={certificate[0]}")
        assert is_whole(f"valkeys:{server}/1?ssl_ca_certs={certificate[0]}&ssl_min_version=772")
        assert is_whole(f"rediss:{server}?ssl_cert_reqs=none&ssl_check_hostname=no")
        for options, told in (
            ("", "certificate verify failed"),
            ("?ssl_ca_certs=/none", "no such file"),
            ("?ssl_cert_reqs=none&ssl_ciphers=foo", "no cipher"),
        ):
            with pytest.raises(StoreError, match=told) as found:
                is_whole(f"rediss:{server}{options}")
            assert QUOTED not in str(found.value)
            assert PASSWORD not in str(found.value)
