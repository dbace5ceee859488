"""Names that a peer sends and an administrator reads: none of them reaches the terminal as more than a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from actors import Latch, host
from raw_peer import RawPeer
from zmqagents import AgentBase, AgentProxy, RpcAgentServerLauncher, RpcClient, cli, codec
from zmqagents.cli import output
from zmqagents.wire.messages import Code, Flag, Kind

pytestmark = pytest.mark.timeout(60)


class Odd(AgentBase):
    """Gives what is hard to show."""

    def echo(self, value: Any = None) -> Any:
        return value

    def fail(self) -> None:
        raise ValueError("no")

    def long_number(self) -> int:
        return 10**5000

    def nest(self, levels: int) -> Any:
        value: list[Any] = []
        for _ in range(levels - 1):
            value = [value]
        return value


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(Odd, Latch) as launcher:
        yield launcher


@pytest.fixture
def odd(client: RpcClient) -> AgentProxy:
    proxy: Any = client.create_agent(Odd)
    assert isinstance(proxy, AgentProxy)
    return proxy


EVIL = "x\n\x1b]0;owned\x07\x1b[2K\x1b[31mFAKE: host stopped\x1b[0m"


@pytest.mark.parametrize("name", [EVIL, "", "a.b", "a b", "a\u202eb", "1"])
def test_an_attribute_whose_name_is_no_identifier_is_refused_before_it_is_queued(
    server: RpcAgentServerLauncher, client: RpcClient, name: str
) -> None:
    agent = client.create_agent(Latch)
    with RawPeer(server) as peer:
        peer.hello()
        peer.call(1, agent.agent_id, name, flags=Flag.ATTRIBUTE, time_ms=3000)
        head, body = peer.answer_to(1)
    assert (head.kind, head.code) == (Kind.ERROR, Code.HOST_ERROR)
    said = codec.unpack(body[0])
    assert said["type"].endswith("UnknownMethod")
    assert said["message"].isprintable()
    assert client.get_call_list() == []


def test_what_the_shell_prints_of_names_and_errors_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table([{"agent": EVIL}], ["agent"])
    output.show_facts({"state": EVIL})
    output.show({"value": EVIL, "deep": ["\x9b31m", "\x7f", "\u202e"]}, as_json=True)
    output.say(f"an error of an agent: {EVIL}")
    said = capsys.readouterr()
    for line in (said.out + said.err).split("\n"):
        assert line.isprintable()
    assert json.loads(said.out.split("\n")[-2]) == {"value": EVIL, "deep": ["\x9b31m", "\x7f", "\u202e"]}


def test_a_text_that_a_call_gives_is_written_as_it_is_but_not_to_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output.show("a\tb\n\u202eä", as_json=False)
    assert capsys.readouterr().out == "a\tb\n\u202eä\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    output.show(EVIL, as_json=False)
    assert capsys.readouterr().out == EVIL.replace("\x1b", "\\x1b").replace("\x07", "\\x07") + "\n"


def _run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("call", "nobody", "echo"), 2, "UnknownAgent"),
        (("call", "{odd}", "no_such"), 2, "UnknownMethod"),
        (("call", "{odd}", "fail"), 1, "builtins:ValueError"),
        (("call", "{odd}", "echo", "--timeout", "0"), 6, "CallTimeout"),
        (("call", "{odd}", "echo", "{{"), 2, "UsageError"),
        (("call", "{odd}", "echo", "--no-such-option"), 2, "UsageError"),
        (("call", "{odd}", "echo", "--timeout"), 2, "UsageError"),
        (("call", "{odd}", "echo", "1", "--no-wait"), 2, "UsageError"),
    ],
)
def test_an_error_is_json_where_json_is_asked_for(
    server: RpcAgentServerLauncher, odd: AgentProxy, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], code: int, error: str,
) -> None:  # fmt: skip
    words = tuple(word.format(odd=odd.agent_id) for word in words)
    assert _run(*words, "--json", "--port", str(server.port)) == code
    said = capsys.readouterr()
    facts = json.loads(said.err)
    assert (said.out, facts["exit_code"], facts["error"]) == ("", code, error)
    assert facts["message"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_value_that_json_or_python_finds_too_long_or_too_deep_is_shown(
    server: RpcAgentServerLauncher, odd: AgentProxy, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    where = (*options, "--port", str(server.port))
    assert _run("call", odd.agent_id, "long_number", *where) == 0
    assert json.loads(capsys.readouterr().out) == hex(10**5000)
    assert _run("call", odd.agent_id, "nest", "900", *where) == 0
    assert capsys.readouterr().out.count("[") == 900
