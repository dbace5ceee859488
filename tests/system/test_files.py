"""Files of a host: what can be read and what cannot, and what becomes of it where it arrives."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors import CALL_TIMEOUT_S, CLASSES, client_of, host, within
from hosts import as_server, eventually
from raw_peer import RawPeer
from zmqagents import (
    AgentBase,
    AsyncRpcClient,
    CallError,
    ConfigError,
    PermissionRefused,
    RemoteProtocolError,
    RpcAgentServerLauncher,
    RpcClient,
    UnknownFile,
    current_call,
)
from zmqagents.client.download import Incoming
from zmqagents.config import BrokerConfig
from zmqagents.execution import file_roots
from zmqagents.execution.file_roots import CHUNK_BYTES, FileRoots
from zmqagents.wire.messages import STREAM_WINDOW, Kind, Op

pytestmark = pytest.mark.timeout(60)

BLOCK = bytes(range(256)) * 1024  # 256 KiB
MEBIBYTE = 1024 * 1024


class Copier(AgentBase):
    """An agent that copies a file of its own host."""

    def copy(self, remote: str, local: str) -> int:
        call = current_call()
        assert call is not None
        return int(call.client().download_file(remote, local))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``served`` is; beside it lies ``secret``."""
    tree = tmp_path_factory.mktemp("tree")
    root, other = tree / "served", tree / "other"
    (root / "sub").mkdir(parents=True)
    other.mkdir()
    (tree / "secret").write_text("secret")
    (tree / "served-not").write_text("secret, and its name begins like that of the directory")
    (root / "a.txt").write_text("hello")
    (root / "sub" / "b.bin").write_bytes(BLOCK * 5 + b"end")
    (root / "empty").touch()
    (root / "ünï code").write_text("named")
    (other / "c.txt").write_text("other root")
    for name, to in {
        "inside": "sub/b.bin", "into": "sub", "up": "../secret", "absolute": str(tree / "secret"), "etc": "/etc",
        "there": "../other/c.txt", "loop": "loop", "dangling": "nowhere", "gone": "/nowhere/at/all",
    }.items():  # fmt: skip
        (root / name).symlink_to(to)
    os.mkfifo(root / "fifo")
    return tree


@pytest.fixture(scope="module")
def server(tree: Path) -> Iterator[RpcAgentServerLauncher]:
    with host(*CLASSES, Copier, file_roots=[tree / "served", tree / "other"], capacity=4) as launcher:
        yield launcher


# ---------------------------------------------------------------- what can be read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"hello"),
        ("sub/b.bin", BLOCK * 5 + b"end"),
        ("empty", b""),
        ("ünï code", b"named"),
        ("c.txt", b"other root"),  # of the second root
        ("inside", BLOCK * 5 + b"end"),  # links that stay inside
        ("into/b.bin", BLOCK * 5 + b"end"),
        ("there", b"other root"),
        ("sub/../a.txt", b"hello"),
        ("./a.txt", b"hello"),
    ],
)
def test_a_file_below_a_root_arrives_whole(
    client: RpcClient, tree: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    seen: list[tuple[int, int]] = []
    to = tmp_path / "copy"
    assert client.download_file(name, to, lambda there, total: seen.append((there, total))) == len(content)
    assert to.read_bytes() == content
    assert seen[0] == (0, len(content))
    assert seen[-1] == (len(content), len(content))
    assert seen == sorted(seen)
    assert os.listdir(tmp_path) == ["copy"]


def test_an_absolute_path_below_a_root_will_do_as_well(client: RpcClient, tree: Path, tmp_path: Path) -> None:
    assert client.download_file(tree / "served" / "a.txt", tmp_path / "copy") == 5
    assert client.download_file(str(tree / "served" / ".." / "other" / "c.txt"), str(tmp_path / "copy")) == 10
    assert (tmp_path / "copy").read_text() == "other root"


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../secret", "sub/../../secret", "up", "absolute", "etc/passwd", "etc/../etc/passwd",
        "../served-not", "{tree}/secret", "{tree}/served/../secret", "{tree}/served-not", "//etc/passwd", "/",
        "{tree}/served", ".", "sub", "/nowhere", "../nowhere",
        "gone", "/dev/zero", "/proc/self/environ", "fifo", "loop", "", "a.txt\0",
        "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_not_a_file_below_a_root_is_refused_at_once(
    client: RpcClient, tree: Path, tmp_path: Path, name: str
) -> None:
    with within(2), pytest.raises(PermissionRefused) as refused:
        client.download_file(name.format(tree=tree), tmp_path / "copy")
    assert isinstance(refused.value, PermissionError)
    assert os.listdir(tmp_path) == []


def test_outside_nothing_tells_what_is_there(client: RpcClient, tree: Path, tmp_path: Path) -> None:
    told = set()
    for name in (tree / "secret", tree / "nowhere", "/etc", "/etc/passwd", "/nowhere/x"):
        with pytest.raises(PermissionRefused) as refused:
            client.download_file(name, tmp_path / "copy")
        told.add(str(refused.value).replace(str(name), "NAME"))
    assert told == {"'NAME' leads out of the directories that this host serves"}


@pytest.mark.parametrize("name", ["nowhere", "sub/nowhere", "nowhere/a.txt", "a.txt/x", "dangling", "{tree}/served/no"])
def test_a_file_that_is_not_there_is_said_to_be_unknown(
    client: RpcClient, tree: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UnknownFile, match="there is no file") as unknown:
        client.download_file(name.format(tree=tree), tmp_path / "copy")
    assert isinstance(unknown.value, FileNotFoundError)
    assert os.listdir(tmp_path) == []


def test_a_socket_and_an_unreadable_file_are_refused(tmp_path: Path) -> None:
    roots = FileRoots([os.path.realpath(tmp_path)])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(PermissionRefused, match="'s' is no regular file"):
            roots.open("s")
    if os.geteuid() != 0:
        (tmp_path / "locked").touch(mode=0)
        with pytest.raises(PermissionRefused, match="cannot be read by this host"):
            roots.open("locked")


@pytest.mark.parametrize("path", [None, 7, b"a.txt", ["a.txt"]])
def test_a_path_is_a_text(path: object) -> None:
    with pytest.raises(PermissionRefused, match="a path is a text"):
        FileRoots(["/"]).open(path)


def test_the_root_of_everything_may_be_served_if_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    fd = FileRoots(["/"]).open(str(tmp_path / "x"))
    assert os.read(fd, 10) == b"x"
    os.close(fd)


def test_without_a_root_nothing_is_served(tmp_path: Path) -> None:
    no_files = pytest.raises(PermissionRefused, match="this host serves no files: it was started without --file-root")
    with host() as launcher, client_of(launcher) as client, no_files:
        client.download_file("/etc/passwd", tmp_path / "copy")
    assert os.listdir(tmp_path) == []


def test_a_way_that_is_changed_meanwhile_does_not_lead_out(tmp_path: Path) -> None:
    """Where a directory was when the path was judged there is a link when the file is opened."""
    root = Path(os.path.realpath(tmp_path / "served"))
    for place, text in ((root / "real", "public"), (tmp_path / "outside", "secret")):
        place.mkdir(parents=True)
        (place / "file").write_text(text)
    spare, stop = root / "spare", threading.Event()
    spare.symlink_to(tmp_path / "outside")
    (root / "place").symlink_to(root / "real")

    def swap() -> None:  # renames put another thing under the name in one step
        while not stop.is_set():
            for to in (tmp_path / "outside", root / "real"):
                spare.unlink(missing_ok=True)
                spare.symlink_to(to)
                spare.rename(root / "place")
            os.rename(root / "real", root / "moved")
            os.symlink(tmp_path / "outside", root / "real")
            os.unlink(root / "real")
            os.rename(root / "moved", root / "real")

    swapper = threading.Thread(target=swap)
    swapper.start()
    roots, seen = FileRoots([str(root)]), {"public": 0, "refused": 0}
    try:
        for n in range(3000):
            try:
                fd = roots.open("place/file" if n % 2 else "real/file")
            except (PermissionRefused, UnknownFile):
                seen["refused"] += 1
            else:
                with open(fd) as file:
                    seen[file.read()] += 1  # KeyError: the secret
    finally:
        stop.set()
        swapper.join()
    assert min(seen.values()) > 10, f"nothing was swapped at the right moment: {seen}"


@pytest.mark.parametrize("parts", [["link", "file"], ["real", "link"]])
def test_the_second_walk_follows_no_link(tmp_path: Path, parts: list[str]) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "link").symlink_to("file")
    with pytest.raises((PermissionRefused, NotADirectoryError)):
        file_roots.open_below(str(tmp_path), parts, "asked")


def test_the_key_store_is_not_below_a_root(tmp_path: Path) -> None:
    keys = Path(os.environ["ZMQAGENTS_KEYS"])
    for root in (keys.parent, keys, keys / "authorized"):
        with pytest.raises(ConfigError, match=r"^file_roots: the key store .* could be read"), host(file_roots=[root]):
            pass


# ---------------------------------------------------------------- what arrives


def test_200_mib_arrive_byte_for_byte_in_flat_memory(
    server: RpcAgentServerLauncher, client: RpcClient, tree: Path, tmp_path: Path
) -> None:
    large, size = tree / "served" / "large", 200 * MEBIBYTE
    written = hashlib.blake2b()
    with large.open("wb") as file:
        for n in range(size // len(BLOCK)):
            block = n.to_bytes(8, "big") + BLOCK[8:]  # no two alike
            file.write(block)
            written.update(block)
    ends = [psutil.Process(server.pid), psutil.Process()]
    before = [process.memory_info().rss for process in ends]
    peak = [0, 0]

    def progress(there: int, total: int) -> None:
        if there // CHUNK_BYTES % 16 == 0:
            for n, process in enumerate(ends):
                peak[n] = max(peak[n], process.memory_info().rss - before[n])

    assert client.download_file("large", tmp_path / "copy", progress) == size
    received = hashlib.blake2b()
    with (tmp_path / "copy").open("rb") as copy:
        while block := copy.read(MEBIBYTE):
            received.update(block)
    assert received.digest() == written.digest()
    assert max(peak) < 48 * MEBIBYTE, f"the host and the client grew by {peak} bytes"
    large.unlink()
    (tmp_path / "copy").unlink()


def test_an_earlier_file_is_replaced_in_one_step_and_kept_if_that_fails(
    client: RpcClient, tree: Path, tmp_path: Path
) -> None:
    to = tmp_path / "copy"
    to.write_text("before")
    with pytest.raises(UnknownFile):
        client.download_file("nowhere", to)

    def look(there: int, total: int) -> None:
        assert to.read_text() == "before"

    client.download_file("a.txt", to, look)
    assert to.read_text() == "hello"
    assert os.listdir(tmp_path) == ["copy"]


def test_the_copy_has_the_permissions_of_a_new_file(client: RpcClient, tmp_path: Path) -> None:
    client.download_file("a.txt", tmp_path / "copy")
    (tmp_path / "new").touch()
    assert (tmp_path / "copy").stat().st_mode == (tmp_path / "new").stat().st_mode


class _Enough(Exception):
    pass


def test_an_interrupted_download_leaves_nothing_here_and_no_call_there(
    client: RpcClient, tree: Path, tmp_path: Path
) -> None:
    (tree / "served" / "longer").write_bytes(BLOCK * 4 * STREAM_WINDOW)

    def progress(there: int, total: int) -> None:
        if there:
            assert len(os.listdir(tmp_path)) == 1  # the draft
            raise _Enough

    with pytest.raises(_Enough):
        client.download_file("longer", tmp_path / "copy", progress)
    assert os.listdir(tmp_path) == []
    assert eventually(lambda: client.get_call_list() == [], CALL_TIMEOUT_S)


def test_a_place_that_cannot_be_written_is_found_before_anything_is_asked(client: RpcClient, tmp_path: Path) -> None:
    before = client.get_server_info()["calls"]["accepted"]
    with pytest.raises(IsADirectoryError):
        client.download_file("a.txt", tmp_path)
    with pytest.raises(FileNotFoundError) as missing:
        client.download_file("a.txt", tmp_path / "nowhere" / "copy")
    assert not isinstance(missing.value, UnknownFile)
    assert client.get_server_info()["calls"]["accepted"] == before


def test_a_file_that_shrinks_while_it_is_read_is_an_error(client: RpcClient, tree: Path, tmp_path: Path) -> None:
    shrinking = tree / "served" / "shrinking"
    shrinking.write_bytes(BLOCK * 4 * STREAM_WINDOW)

    def progress(there: int, total: int) -> None:
        if there == 0:
            os.truncate(shrinking, len(BLOCK))

    with pytest.raises(CallError, match="'shrinking' became shorter while it was read"):
        client.download_file("shrinking", tmp_path / "copy", progress)
    assert os.listdir(tmp_path) == []


def test_a_file_that_grows_while_it_is_read_arrives_as_it_was(client: RpcClient, tree: Path, tmp_path: Path) -> None:
    growing = tree / "served" / "growing"
    growing.write_bytes(BLOCK * 2 * STREAM_WINDOW)

    def progress(there: int, total: int) -> None:
        with growing.open("ab") as file:
            file.write(b"more")

    assert client.download_file("growing", tmp_path / "copy", progress) == len(BLOCK) * 2 * STREAM_WINDOW
    assert (tmp_path / "copy").read_bytes() == BLOCK * 2 * STREAM_WINDOW


@pytest.mark.parametrize(
    "items", [[], [3], [3, b"ab"], [3, b"abcd"], [3, b""], [b"abc"], [-1], [3, "abc"], [3, 3], [True], [None]]
)
def test_what_is_no_file_is_not_kept(tmp_path: Path, items: list[object]) -> None:
    def receive() -> None:
        with Incoming(tmp_path / "copy") as file:
            for item in items:
                file.take(item)
            file.finish()

    with pytest.raises(RemoteProtocolError, match=r"part of a file|too early"):
        receive()
    assert os.listdir(tmp_path) == []


def test_a_file_comes_as_a_stream_or_not_at_all(server: RpcAgentServerLauncher) -> None:
    """Whoever leaves the flag out would get all of it as one list."""
    with RawPeer(server) as peer:
        peer.hello()
        peer.call(1, "", Op.DOWNLOAD, "a.txt")
        head, rest = peer.answer_to(1)
        assert head.kind == Kind.ERROR
        assert b"a file comes as a stream" in rest[0]


def test_chunks_fit_into_the_messages_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(BLOCK)
    (tmp_path / "to").mkdir()
    with host(file_roots=[tmp_path], max_message_bytes=10_000) as launcher, client_of(launcher) as client:
        assert client.download_file("x", tmp_path / "to" / "x") == len(BLOCK)
    assert (tmp_path / "to" / "x").read_bytes() == BLOCK


def test_an_agent_downloads_like_anybody(client: RpcClient, tmp_path: Path) -> None:
    assert client.create_agent("Copier").copy("sub/b.bin", str(tmp_path / "copy")) == len(BLOCK) * 5 + 3
    assert (tmp_path / "copy").read_bytes() == BLOCK * 5 + b"end"


# ---------------------------------------------------------------- asyncio, the shell


def test_an_async_client_downloads_without_stopping_its_loop(
    server: RpcAgentServerLauncher, tree: Path, tmp_path: Path
) -> None:
    (tree / "served" / "medium").write_bytes(BLOCK * 8 * STREAM_WINDOW)
    threads, turns = set(), 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> int:
        async with AsyncRpcClient(server.host, server.port) as client:
            counting = asyncio.create_task(count())
            size = await client.download_file(
                "medium", tmp_path / "copy", lambda there, total: threads.add(threading.current_thread())
            )
            counting.cancel()
            with pytest.raises(PermissionRefused):
                await client.download_file("/etc/passwd", tmp_path / "other")
            return size

    assert asyncio.run(main()) == len(BLOCK) * 8 * STREAM_WINDOW
    assert (tmp_path / "copy").read_bytes() == BLOCK * 8 * STREAM_WINDOW
    assert threads == {threading.main_thread()}
    assert turns > 100
    assert os.listdir(tmp_path) == ["copy"]


def test_a_cancelled_download_leaves_nothing(server: RpcAgentServerLauncher, tree: Path, tmp_path: Path) -> None:
    (tree / "served" / "cut").write_bytes(BLOCK * 8 * STREAM_WINDOW)

    async def main() -> None:
        async with AsyncRpcClient(server.host, server.port) as client:
            begun = asyncio.Event()
            copying = asyncio.create_task(client.download_file("cut", tmp_path / "copy", lambda *_: begun.set()))
            await begun.wait()
            copying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await copying
            assert copying.cancelled()

    asyncio.run(main())
    assert os.listdir(tmp_path) == []


def test_the_shell_copies_a_file(server: RpcAgentServerLauncher, tmp_path: Path) -> None:
    def download(*words: str) -> subprocess.CompletedProcess[str]:
        return as_server("download", *words, port=server.port, cwd=tmp_path)

    here = download("sub/b.bin")
    assert (here.returncode, here.stdout, here.stderr) == (0, "b.bin\n", "")
    assert (tmp_path / "b.bin").stat().st_size == len(BLOCK) * 5 + 3
    (tmp_path / "to").mkdir()
    there = download("a.txt", "to", "--json")
    assert json.loads(there.stdout) == {"path": "to/a.txt", "bytes": 5}
    assert (tmp_path / "to" / "a.txt").read_text() == "hello"
    refused = download("/etc/passwd")
    assert (refused.returncode, refused.stdout) == (5, "")
    assert "'/etc/passwd' leads out" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert download("nowhere").returncode == 2
    assert "cannot be written" in download("a.txt", "no/such/place").stderr
    assert sorted(os.listdir(tmp_path)) == ["b.bin", "to"]


def test_roots_may_be_given_as_any_list_of_paths(tree: Path) -> None:
    assert BrokerConfig(file_roots=(tree / "served",)).public()["file_roots"] == [os.path.realpath(tree / "served")]  # type: ignore[arg-type]
