"""What a peer cannot reach, however it asks, and what a host never shows.

The peer here speaks frame by frame, so no check of our own client stands in its way.
"""

from __future__ import annotations

import ast
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import hosts
from actors import CALL_TIMEOUT_S, Desk, client_of, host
from hosts import environment
from raw_peer import RawPeer
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, ZmqAgentsError, agent, codec, errors
from zmqagents.security.keys import KeyStore
from zmqagents.wire.link import rebuild_error
from zmqagents.wire.messages import Flag, Kind, Op, Reply

pytestmark = pytest.mark.timeout(60)

PACKAGE = Path(errors.__file__).parent
SECRET = "s3cr3t-0f-the-t3st"


class Vault(AgentBase):
    """Has much that is nobody's business."""

    _combination = [1, 2, 3]
    library = os  # things that no method of this class is
    run = staticmethod(lambda: "public")

    def __init__(self) -> None:
        super().__init__()
        self._secret = SECRET
        self.__own = SECRET
        self.callback = os.system
        self.helper = self._hidden

    def open(self) -> str:
        return "public"

    def _hidden(self) -> str:
        return SECRET

    def __enter__(self) -> str:  # type: ignore[override]
        return SECRET

    def __getitem__(self, key: Any) -> str:
        return SECRET


@agent
class Record(dict):  # type: ignore[type-arg]
    """No `AgentBase`, and a base class with much of its own."""

    def __init__(self) -> None:
        super().__init__(secret=SECRET)

    def size(self) -> int:
        return len(self)


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(Vault, Record, Desk) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def peer(server: RpcAgentServerLauncher) -> Iterator[RawPeer]:
    with RawPeer(server) as peer:
        peer.hello()
        for name in ("Vault", "Record"):
            answer(peer, "", Op.CREATE, options={"class": name, "id": name.lower()})
        yield peer


_numbers = itertools.count(1)


def answer(peer: RawPeer, *args: Any, **options: Any) -> Any:
    """What a call gives: its value, or the error as an object."""
    number = next(_numbers)
    peer.call(number, *args, **options)
    head, rest = peer.answer_to(number)
    if head.kind == Kind.ERROR:
        return rebuild_error(Reply(head.code, rest))
    return codec.decode(rest[0], rest[1:])


# ---------------------------------------------------------------- methods and attributes

PRIVATE = [
    *sorted({name for name in (*dir(object), *dir(AgentBase)) if name.startswith("_") and name != "__call__"}),
    "_secret", "_Vault__own", "_hidden", "_combination", "__enter__", "__getitem__", "__dict__", "__globals__",
    "__zmqagents_options__", "_zmqagents_host", "_zmqagents_made_with",
]  # fmt: skip
CODE = ["callback", "helper", "library"]
ODD = [
    "", " ", "_", ".", "open ", " open", "open\0", "Open", "open.__globals__", "open.__func__", "library.system",
    "__class__.__init__.__globals__", "\uff3fsecret", "\uff3f\uff3fclass\uff3f\uff3f", "callback", "helper", "library",
    "to_dist", "model", "model_config", "mro", "x" * 255,
]  # fmt: skip


@pytest.mark.parametrize("flags", [0, Flag.STREAM, Flag.DETACHED])
def test_no_call_reaches_what_is_no_public_method_of_the_class(peer: RawPeer, flags: int) -> None:
    for name in (*PRIVATE, *ODD):
        error = answer(peer, "vault", name, flags=flags)
        assert type(error) is errors.UnknownMethod, name
        assert SECRET not in str(error), name


def test_no_attribute_read_reaches_what_is_private(peer: RawPeer) -> None:
    for name in (*PRIVATE, *ODD):
        if name not in CODE:
            error = answer(peer, "vault", name, flags=Flag.ATTRIBUTE)
            assert isinstance(error, errors.UnknownMethod), name
            assert SECRET not in str(error), name


def test_an_attribute_that_is_code_is_neither_run_nor_sent(peer: RawPeer) -> None:
    for name in (*CODE, "run", "open"):
        error = answer(peer, "vault", name, flags=Flag.ATTRIBUTE)
        assert isinstance(error, (errors.UnknownMethod, errors.SerializationError)), name
        assert SECRET not in str(error), name


def test_what_a_class_offers_is_what_it_and_its_bases_call_public(peer: RawPeer) -> None:
    assert answer(peer, "vault", "open") == answer(peer, "vault", "run") == "public"
    assert answer(peer, "record", "size") == 1
    for name in ("__getitem__", "__class_getitem__", "__setitem__", "__reduce_ex__", "__format__"):
        assert type(answer(peer, "record", name, "secret")) is errors.UnknownMethod


def test_requests_to_the_host_are_a_list_of_their_own(peer: RawPeer) -> None:
    for name in ("handle", "_dump", "__class__", "info", "_stop", "", "Dump", "getattr"):
        assert type(answer(peer, "", name)) is errors.UnknownMethod
    for agent_id in ("host", "", "__main__", "self"):
        assert type(answer(peer, agent_id, "_files")) in (errors.UnknownAgent, errors.UnknownMethod)


# ---------------------------------------------------------------- creation


@pytest.mark.parametrize(
    "name",
    ["os:system", "builtins:object", "builtins:eval", "subprocess:Popen", "zmqagents.agents.base:AgentBase",
     "AgentBase", "zmqagents.broker.broker:Broker", "test_trust:KeyStore", "test_trust:Path", "_Vault",
     "Vault.__class__", "", "object"],
)  # fmt: skip
def test_only_classes_of_the_table_are_made(peer: RawPeer, name: str) -> None:
    assert type(answer(peer, "", Op.CREATE, options={"class": name})) is errors.UnknownClass


@pytest.mark.parametrize("name", [None, 7, b"Vault", ["Vault"], {"Vault": 1}])
def test_the_name_of_a_class_is_a_text(peer: RawPeer, name: Any) -> None:
    assert type(answer(peer, "", Op.CREATE, options={"class": name})) is errors.RemoteProtocolError


@pytest.mark.parametrize(
    "options",
    [{"max_concurrency": "9"}, {"max_concurrency": 0}, {"max_concurrency": True}, {"reentrant": 1}, {"on_busy": "x"},
     {"isolation": "fork"}, {"isolation": "process", "memory_mb": -1}, {"memory_mb": 64}, {"env": {"A": 1}},
     {"max_restarts": []}, {"on_timeout": {}}, {"persist": "x"}, {"lifetime": []}, {"idle_s": "x"},
     {"id": 7}, {"id": ""}, {"id": "a\0"}, {"id": "x" * 300}],
)  # fmt: skip
def test_options_of_an_agent_are_checked_on_the_host(peer: RawPeer, options: dict[str, Any]) -> None:
    error = answer(peer, "", Op.CREATE, options={"class": "Vault", **options})
    assert isinstance(error, (errors.ConfigError, errors.RemoteProtocolError))


def test_options_that_nobody_knows_change_nothing(peer: RawPeer, server: RpcAgentServerLauncher) -> None:
    more = {"__class__": "x", "_za_id": "x", "instance": "x", "spec": "x", "owner": "x", "made": True, "role": "admin"}
    answer(peer, "", Op.CREATE, options={"class": "Vault", "id": "plain", **more})
    with client_of(server) as client:
        assert client.get_agent("plain").open() == "public"
        client.delete_agent("plain")


def test_arguments_of_an_agent_are_its_own_and_start_no_host(server: RpcAgentServerLauncher) -> None:
    """``to_dist=`` at creation means something where an agent is made by hand; a caller must not have it."""
    with client_of(server) as client:
        before = psutil.Process(server.pid).children()
        for name in ("to_dist", "self", "_zmqagents_id"):
            given: dict[str, Any] = {name: True}
            with pytest.raises(TypeError):
                client.create_agent("Vault", **given)
        assert psutil.Process(server.pid).children() == before


# ---------------------------------------------------------------- pickles


def test_pickles_are_read_in_three_places_and_none_of_them_reads_a_peer() -> None:
    """`pickling` (a program and its private host), and the launch payload that a child reads from its parent."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and re.fullmatch(r"loads?|Unpickler", node.attr):
                owner = ast.unparse(node.value)
                # "load" of most is work on a host, of `point` an entry point that is installed, of `config` uvicorn's.
                if owner not in ("child", "config", "info", "json", "member", "point", "self", "tomllib"):
                    found.add((path.stem, owner))
            if isinstance(node, ast.Name | ast.alias):
                name = node.id if isinstance(node, ast.Name) else node.name
                assert name not in ("eval", "exec", "marshal", "shelve", "dill", "yaml"), path
    assert found == {
        ("pickling", "pickle"), ("child_main", "pickle"), ("child_main", "pickling"), ("serve", "pickling"),
        ("result", "pickling"), ("carried", "pickling"),
    }  # fmt: skip
    assert "sys.path[:] = pickle.load(source)" in (PACKAGE / "process" / "children.py").read_text()


# ---------------------------------------------------------------- secrets


def shown_by(client: RpcClient) -> str:
    """Everything that a host tells of itself."""
    return repr([client.get_server_info(), client.get_agent_list(), client.get_call_list(), client.dump()])


@pytest.mark.parametrize("mode", hosts.MODES)
def test_no_secret_is_in_the_arguments_the_status_or_the_files_of_a_host(
    mode: str, runtime_dir: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models.json"
    models.write_text(
        json.dumps({"config_name": "m", "model_type": "openai_chat", "model_name": "q", "api_key": SECRET})
    )
    keys = KeyStore.open()
    secrets = (SECRET, keys.server_keypair().secret, keys.client_keypair().secret)
    urls = {"redis_url": f"redis://me:{SECRET}@localhost:1/2", "studio_url": f"http://me:{SECRET}@127.0.0.1:9/x"}
    # The program is told on its own command line, so what counts is its child; in mode "main" there is none.
    with hosts.running(mode, model_config_path=str(models), **urls) as running, running.client() as client:
        shown = shown_by(client)
        shown += "".join(path.read_text() for path in runtime_dir.glob("*.json"))
        if mode == "fresh":
            shown += " ".join(psutil.Process(running.pid).cmdline())
        assert "***" in shown
        assert "q" in client.create_agent("Worker").configured("m")
    assert not [secret for secret in secrets if secret in shown]


def test_no_secret_is_logged_even_when_everything_is(runtime_dir: Path, tmp_path: Path) -> None:
    keys = KeyStore.open()
    secrets = (SECRET, keys.server_keypair().secret, keys.client_keypair().secret)
    command = [sys.executable, "-m", "zmqagents", "start", "--log-level", "debug", "--json", "--local-mode"]
    settings = {
        "AS_SERVER_REDIS_URL": f"redis://:{SECRET}@localhost:1", "AS_SERVER_STUDIO_URL": f"http://:{SECRET}@127.0.0.1:9",
    }  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**settings)
    )
    try:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        argv = " ".join(psutil.Process(process.pid).cmdline())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ZMQAGENTS_KEYS", str(tmp_path / "other"))
            strange = KeyStore.open()
            strange.remember_host("127.0.0.1", port, keys.server_keypair().public)
            with (
                RpcClient("127.0.0.1", port, transport="tcp") as client,
                pytest.raises(errors.AuthenticationError) as refused,
            ):
                client.get_server_info()
        with RpcClient("127.0.0.1", port, transport="tcp", timeout=CALL_TIMEOUT_S) as client:
            client.stop()
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    told = argv + out + err + str(refused.value)
    assert "with the unknown key" in err, "the log was looked at"
    assert not [secret for secret in (*secrets, strange.client_keypair().secret) if secret in told]


def test_an_error_at_the_start_names_no_password(capfd: pytest.CaptureFixture[str]) -> None:
    launcher = RpcAgentServerLauncher(pool_type="redis", redis_url=f"redis://me:{SECRET}@127.0.0.1:1/0")
    with pytest.raises((ZmqAgentsError, ImportError)) as failed:
        launcher.launch()
    told, error = repr(launcher) + repr(launcher.config), failed.value
    while error is not None:
        told += repr(error) + str(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    assert SECRET not in told + "".join(capfd.readouterr())


def test_key_files_are_for_their_owner_and_the_connection_file_holds_no_secret(
    server: RpcAgentServerLauncher, runtime_dir: Path
) -> None:
    store = KeyStore.open()
    for directory in (store.path, store.path / "authorized", store.path / "known_hosts"):
        assert directory.stat().st_mode & 0o777 == 0o700
    for name in ("server.key", "client.key"):
        assert (store.path / name).stat().st_mode & 0o777 == 0o600
    record = json.loads((runtime_dir / f"{server.server_id}.json").read_text())
    assert record["server_key"] == store.server_keypair().public
    assert store.server_keypair().secret not in repr(record)


# ---------------------------------------------------------------- refused in time


def test_a_wrong_key_is_an_error_within_a_second_in_every_kind_of_client(
    server: RpcAgentServerLauncher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import asyncio

    from zmqagents import AsyncRpcClient

    ours = KeyStore.open().server_keypair().public
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZMQAGENTS_KEYS", str(tmp_path / "other"))
        KeyStore.open().remember_host("127.0.0.1", server.port or 0, ours)

        def blocking() -> None:
            with RpcClient("127.0.0.1", server.port, transport="tcp") as client:
                client.get_agent_list()

        def future() -> None:
            with RpcClient("127.0.0.1", server.port, transport="tcp") as client:
                client.get_result("aaaaaaaaaaaaaaaa-1").result(CALL_TIMEOUT_S)

        def awaited() -> None:
            async def main() -> None:
                async with AsyncRpcClient("127.0.0.1", server.port, transport="tcp") as client:
                    await client.get_agent_list()

            asyncio.run(main())

        for ask in (blocking, future, awaited):
            start = time.monotonic()
            with pytest.raises(errors.AuthenticationError):
                ask()
            assert time.monotonic() - start < 3, "one second is promised, on a machine that is not busy"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
