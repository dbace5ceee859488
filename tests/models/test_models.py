"""Model configs: checking, keeping secrets, and clients against a real HTTP server on loopback."""

from __future__ import annotations

import json
import logging
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from zmqagents.agents.context import HostServices, RunningCall, running_call
from zmqagents.errors import CallCancelled, ConfigError, MissingExtra, ZmqAgentsError, describe
from zmqagents.models.chat import ChatModel
from zmqagents.models.checking import check_model_configs, load_model_configs_file
from zmqagents.models.configs import ModelConfigs
from zmqagents.models.values import redact

KEY = "sk-very-secret-0123456789"


def config(name: str = "local", **fields: Any) -> dict[str, Any]:
    return {"config_name": name, "model_type": "openai_chat", "model_name": "tiny", "api_key": KEY, **fields}


# ---------------------------------------------------------------- a server that speaks the API


class ChatHandler(BaseHTTPRequestHandler):
    """Answers with what it was asked; the model's name selects what goes wrong."""

    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
        model = body["model"]
        if model == "refused":  # some endpoints quote the key that they refuse
            quoted = self.headers["Authorization"].removeprefix("Bearer ")
            self.answer(401, {"error": {"message": f"Incorrect API key provided: {quoted}", "code": [quoted]}})
        elif model == "page":
            self.send(200, "text/html", b"<html>welcome</html>")
        elif model == "silent":
            self.answer(200, self.completion(body, None))
        elif body.get("stream"):
            self.stream(body)
        else:
            self.answer(200, self.completion(body, f"you said: {body['messages'][-1]['content']}"))

    def completion(self, body: dict[str, Any], text: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {"id": "c1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}

    def answer(self, status: int, data: Any) -> None:
        self.send(status, "application/json", json.dumps(data).encode())

    def send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        words = ["you ", "said: ", body["messages"][-1]["content"]]
        for delta in [{"role": "assistant"}, *({"content": word} for word in words)]:
            chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
            chunk |= {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


class ChatServer(ThreadingHTTPServer):
    daemon_threads = False  # server_close then joins them: no thread is left behind

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.requests: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def configs() -> Iterator[ModelConfigs]:
    # Before the server is closed: its threads live as long as the clients' kept connections.
    configs = ModelConfigs()
    yield configs
    configs.close()


# ---------------------------------------------------------------- the registry


def test_a_config_comes_back_whole_and_as_a_copy() -> None:
    given = config(client_args={"base_url": "http://127.0.0.1:1/v1"}, anything={"of": ["mine"]})
    configs = ModelConfigs(given)
    got = configs.get("local")
    assert got == given
    got["client_args"]["base_url"] = given["anything"]["of"] = "changed"
    assert configs.get("local")["client_args"]["base_url"] == "http://127.0.0.1:1/v1"
    assert configs.get("local")["anything"] == {"of": ["mine"]}


def test_add_replaces_a_config_of_the_same_name() -> None:
    # The earlier system kept the old one, so a config could never be changed.
    configs = ModelConfigs([config("a"), config("b")])
    assert configs.add(config("a", model_name="large")) == ["a"]
    assert configs.get("a")["model_name"] == "large"
    assert configs.names() == ["a", "b"]


def test_replace_forgets_the_others_and_each_change_has_a_version() -> None:
    configs = ModelConfigs([config("a"), config("b")])
    before = configs.version
    assert configs.replace([config("c")]) == ["c"]
    assert configs.names() == ["c"]
    assert configs.version > before


def test_a_bad_entry_leaves_everything_as_it_was() -> None:
    # The earlier system kept the entries that stood before the bad one.
    configs = ModelConfigs(config("a"))
    version = configs.version
    for change in (configs.add, configs.replace):
        with pytest.raises(ConfigError, match=r"entry 1: config_name is missing"):
            change([config("b"), {"model_type": "openai_chat"}])
    assert configs.names() == ["a"]
    assert configs.version == version


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfigs([config("b"), config("a")]).get("c")
    assert str(caught.value) == "no model config is named 'c'; this host has: a, b"
    with pytest.raises(ConfigError, match="this host has none"):
        ModelConfigs().model("c")


def test_types_that_we_cannot_serve_are_still_kept_as_data() -> None:
    configs = ModelConfigs({"config_name": "own", "model_type": "my_wrapper", "weights": [1, 2.5, None, True]})
    assert configs.get("own")["weights"] == [1, 2.5, None, True]


def test_threads_that_change_and_read_at_once_see_whole_lists() -> None:
    configs = ModelConfigs([config("a", n=0), config("b", n=0)])
    torn: list[Any] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen = {entry["n"] for entry in configs.redacted()}
            if len(seen) != 1:
                torn.append(seen)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(200):
        configs.replace([config("a", n=n), config("b", n=n)])
    done.set()
    for reader in readers:
        reader.join()
    assert torn == []


# ---------------------------------------------------------------- checking


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"model_type": "openai_chat"}, "entry 0: config_name is missing"),
        ({"config_name": "x"}, "entry 0 ('x'): model_type is missing"),
        ({"config_name": 5, "model_type": "openai_chat"}, "entry 0: config_name must be text, not a number"),
        ({"config_name": " ", "model_type": "y"}, "entry 0 (' '): config_name must be text, not empty text"),
        (config(api_key=17), "entry 0 ('local'): api_key must be text, not a number"),
        (config(stream="yes"), "stream must be true or false, not other text"),
        (config(stream=1), "stream must be true or false, not a number"),
        (config(max_retries=True), "max_retries must be a whole number, not true or false"),
        (config(temperature="hot"), "temperature must be a number, not other text"),
        (config(generate_args=[]), "generate_args must be an object, not a list"),
        (config(client_args="http://x"), "client_args must be an object, not other text"),
        (config(client_args={"base_url": "localhost:1"}), "client_args.base_url must be an http:// or https:// URL"),
        (config(client_args={"base_url": "http://[::1"}), "client_args.base_url must be an http:// or https:// URL"),
        (config(client_args={"timeout": "5"}), "client_args.timeout must be a number, not other text"),
        (config(own={"deep": [1, {2}]}), "own.deep[1] must be JSON data, not a Python set"),
        (config(own={3: 4}), "own has a key that is not text but a number"),
        ("openai_chat", "model configs: must be an object or a list of objects, not other text"),
        ([None], "entry 0: must be an object, not null"),
        ([config("a"), config("b"), config("a")], "entry 2 ('a'): config_name is that of entry 0 too"),
    ],
)
def test_a_bad_field_is_named_with_its_entry_and_what_is_wrong(entry: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_model_configs(entry)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_bad_field_is_named_at_once_up_to_five() -> None:
    with pytest.raises(ConfigError) as caught:
        check_model_configs([config("a", stream=3, host=4), {"config_name": "b"}])
    assert str(caught.value) == (
        "model configs: entry 0 ('a'): host must be text, not a number; "
        "entry 0 ('a'): stream must be true or false, not a number; entry 1 ('b'): model_type is missing"
    )
    with pytest.raises(ConfigError, match="and 7 more"):
        check_model_configs([1] * 12)


def test_null_means_absent() -> None:
    assert check_model_configs(config(organization=None, client_args=None, stream=None))


def test_data_without_end_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ConfigError, match="nested deeper than 32 levels"):
        check_model_configs(config(own=endless))


# ---------------------------------------------------------------- files


def test_a_file_holds_one_object_or_a_list(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    file.write_text(json.dumps(config()), encoding="utf-8")
    assert load_model_configs_file(file) == [config()]
    file.write_text(json.dumps([config("a"), config("b")]), encoding="utf-8-sig")
    assert [entry["config_name"] for entry in load_model_configs_file(str(file))] == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b'{"config_name": "a",\n "model_type" }',
            "{file}:2:15: model config file is not JSON: Expecting ':' delimiter",
        ),
        (b"", "{file}:1:1: model config file is not JSON: Expecting value"),
        (b"\xff\xfe{}", "model config file '{file}' is not JSON in UTF-8"),
        (b"[" * 100_000, "model config file '{file}' is not JSON in UTF-8"),
        (b"3", "model config file '{file}': must be an object or a list of objects, not a number"),
        (b'[{"config_name": "a"}]', "model config file '{file}': entry 0 ('a'): model_type is missing"),
    ],
)
def test_a_malformed_file_is_one_line_naming_file_and_fault(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "models.json"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_model_configs_file(file)
    assert str(caught.value) == message.replace("{file}", str(file))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model config file '.*gone\.json' does not exist; check the path"):
        load_model_configs_file(tmp_path / "gone.json")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        load_model_configs_file(tmp_path)


# ---------------------------------------------------------------- secrets

SECRETS = config(
    client_args={
        "base_url": f"https://user:{KEY}@example.org/v1?api_token={KEY}&size=3",
        "default_headers": {"X-Tenant": KEY, "Authorization": f"Bearer {KEY}"},
    },
    headers={"X-Anything": KEY},
    nested=[{"client_secret": KEY, "Password": KEY, "refresh_token": [KEY]}],
    organization="acme",
    max_tokens=100,
    messages_key="messages",
)


def test_redacted_hides_every_secret_and_nothing_else() -> None:
    (shown,) = ModelConfigs(SECRETS).redacted()
    assert KEY not in json.dumps(shown)
    assert shown["api_key"] == "***"
    assert shown["client_args"]["base_url"] == "https://***@example.org/v1?api_token=***&size=3"
    assert shown["client_args"]["default_headers"] == {"X-Tenant": "***", "Authorization": "***"}
    assert shown["nested"] == [{"client_secret": "***", "Password": "***", "refresh_token": "***"}]
    assert (shown["organization"], shown["max_tokens"], shown["messages_key"]) == ("acme", 100, "messages")


def test_no_repr_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    configs = ModelConfigs(SECRETS)
    got = configs.get("local")
    logging.getLogger("test").warning("%s %r %s", configs, got, got["nested"])
    texts = [repr(configs), repr(got), f"{got}", repr(got["client_args"]), repr(configs.model("local")), caplog.text]
    assert all(KEY not in text for text in texts)
    assert "local" in repr(configs)
    assert got["api_key"] == KEY  # the agent's own code does get it
    configs.close()


@pytest.mark.parametrize(
    "entry",
    [
        config(api_key=[KEY]),
        config(headers=KEY),
        config(client_args={"base_url": f"ftp://u:{KEY}@h"}),
        {"model_type": KEY, "api_key": KEY},
        [KEY],
        KEY,
    ],
)
def test_no_error_about_a_bad_field_shows_its_value(entry: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        check_model_configs(entry)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_redact_leaves_the_original_alone() -> None:
    original = {"api_key": KEY, "list": [{"token": KEY}]}
    assert redact(original) == {"api_key": "***", "list": [{"token": "***"}]}
    assert original == {"api_key": KEY, "list": [{"token": KEY}]}


# ---------------------------------------------------------------- clients


def test_a_model_answers_and_sends_what_its_config_says(server: ChatServer, configs: ModelConfigs) -> None:
    configs.add(
        config(
            organization="acme",
            client_args={"base_url": server.url, "default_headers": {"X-Tenant": "t1"}, "max_retries": 0},
            generate_args={"temperature": 0.25, "seed": 7},
        )
    )
    model = configs.model("local")
    assert model("hello") == "you said: hello"
    assert model([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], seed=8) == "you said: u"
    first, second = server.requests
    assert first["path"] == "/v1/chat/completions"
    assert first["body"] == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.25,
        "seed": 7,
    }
    headers = {key.lower(): value for key, value in first["headers"].items()}
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["openai-organization"] == "acme"
    assert headers["x-tenant"] == "t1"
    assert [message["role"] for message in second["body"]["messages"]] == ["system", "user"]
    assert second["body"]["seed"] == 8


def test_the_raw_client_is_the_librarys_own(server: ChatServer, configs: ModelConfigs) -> None:
    import openai

    configs.add(config(client_args={"base_url": server.url}, generate_args={"seed": 7}))
    model = configs.model("local")
    assert isinstance(model.client, openai.OpenAI)
    answer = model.client.chat.completions.create(
        model=model.model_name, messages=[{"role": "user", "content": "raw"}], **model.generate_args
    )
    assert answer.choices[0].message.content == "you said: raw"


def test_stream_true_streams_on_the_wire_and_the_text_is_the_same(server: ChatServer, configs: ModelConfigs) -> None:
    configs.add(config(client_args={"base_url": server.url}, stream=True))
    model = configs.model("local")
    assert model("hello") == "you said: hello"
    assert server.requests[0]["body"]["stream"] is True
    assert model("hello", stream=False) == "you said: hello"
    assert not server.requests[1]["body"].get("stream")


def test_stream_gives_the_pieces_whatever_the_config_says(server: ChatServer, configs: ModelConfigs) -> None:
    configs.add(config(client_args={"base_url": server.url}, stream=False))
    assert list(configs.model("local").stream("hello")) == ["you ", "said: ", "hello"]


def test_a_stream_that_is_left_early_closes_its_connection(server: ChatServer, configs: ModelConfigs) -> None:
    configs.add(config(client_args={"base_url": server.url}))
    pieces = configs.model("local").stream("hello")
    assert next(pieces) == "you "
    pieces.close()  # type: ignore[attr-defined]
    assert configs.model("local")("again") == "you said: again"


def test_a_client_is_kept_until_its_config_changes(server: ChatServer, configs: ModelConfigs) -> None:
    configs.add([config("a", client_args={"base_url": server.url}), config("b", client_args={"base_url": server.url})])
    a, b = configs.model("a"), configs.model("b")
    assert configs.model("a") is a
    configs.add(config("a", model_name="larger", client_args={"base_url": server.url}))
    assert configs.model("a").model_name == "larger"
    assert configs.model("b") is b
    assert a("still works") == "you said: still works"
    a.close()


def test_threads_that_ask_at_once_share_one_client(server: ChatServer, configs: ModelConfigs) -> None:
    configs.add(config(client_args={"base_url": server.url}))
    answers: list[tuple[int, str]] = []

    def ask(n: int) -> None:
        model = configs.model("local")
        answers.append((id(model), model(str(n))))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {text for _, text in answers} == {f"you said: {n}" for n in range(8)}
    assert len({made for made, _ in answers}) == 1


def test_the_environments_key_is_not_sent_to_another_endpoint(
    server: ChatServer, configs: ModelConfigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    configs.add({"config_name": "local", "model_type": "openai_chat", "client_args": {"base_url": server.url}})
    assert configs.model("local")("hello") == "you said: hello"
    assert KEY not in json.dumps(server.requests)
    assert server.requests[0]["body"]["model"] == "local"  # without model_name it is config_name


def test_without_base_url_the_librarys_own_environment_counts(
    server: ChatServer, configs: ModelConfigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    configs.add({"config_name": "env", "model_type": "openai_chat", "model_name": "tiny"})
    assert configs.model("env")("hello") == "you said: hello"


@pytest.mark.parametrize("scheme", ["http://", ""])
@pytest.mark.parametrize("tail", ["", "/", "/v1"])
def test_ollama_is_reached_at_its_host(server: ChatServer, configs: ModelConfigs, scheme: str, tail: str) -> None:
    host = f"{scheme}127.0.0.1:{server.server_port}{tail}"
    options = {"temperature": 0.5, "num_predict": 20}
    configs.add({"config_name": "o", "model_type": "ollama_chat", "model_name": "q", "host": host, "options": options})
    assert configs.model("o")("hello") == "you said: hello"
    assert server.requests[0]["path"] == "/v1/chat/completions"
    body = server.requests[0]["body"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("q", 0.5, 20)


@pytest.mark.parametrize("kind", ["dashscope_chat", "zhipuai_chat", "yi_chat", "litellm_chat"])
def test_other_chat_types_work_at_a_named_compatible_endpoint(
    server: ChatServer, configs: ModelConfigs, kind: str
) -> None:
    configs.add(config(model_type=kind, client_args={"base_url": server.url}, max_tokens=9))
    assert configs.model("local")("hello") == "you said: hello"
    assert server.requests[0]["body"]["max_tokens"] == 9


@pytest.mark.parametrize(
    "entry",
    [
        config(model_type="dashscope_chat"),
        config(model_type="ollama_chat"),
        config(model_type="openai_embedding", client_args={"base_url": "http://127.0.0.1:1/v1"}),
        config(model_type="post_api_chat", api_url="http://127.0.0.1:1/chat"),
    ],
)
def test_what_names_no_compatible_endpoint_is_an_error_saying_what_is_supported(entry: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"supported are openai_chat, ollama_chat with host, and any \*_chat with"):
        ModelConfigs(entry).model("local")


def test_an_option_that_would_be_lost_is_an_error() -> None:
    configs = ModelConfigs(config(model_type="ollama_chat", host="h:1", options={"num_ctx": 4096}))
    with pytest.raises(ConfigError, match=r"options\.num_ctx cannot be set"):
        configs.model("local")


def test_an_unknown_client_arg_is_named(configs: ModelConfigs) -> None:
    configs.add(config(client_args={"bass_url": "x", "base_url": "http://127.0.0.1:1/v1"}))
    with pytest.raises(ConfigError, match=r"model config 'local': no client can be made: .*'bass_url'"):
        configs.model("local")


def test_a_missing_key_is_an_error_before_anything_is_sent(
    configs: ModelConfigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    configs.add({"config_name": "nokey", "model_type": "openai_chat", "model_name": "tiny"})
    with pytest.raises(ConfigError, match=r"model config 'nokey': .*OPENAI_API_KEY"):
        configs.model("nokey")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)  # import then fails, as where it is not installed
    with pytest.raises(MissingExtra, match=r"pip install 'zmqagents\[models\]'"):
        ModelConfigs(config()).model("local")


def test_a_refused_key_is_not_shown_by_the_error(server: ChatServer, configs: ModelConfigs) -> None:
    import openai

    configs.add(config(model_name="refused", client_args={"base_url": server.url}))
    for stream in (False, True):
        with pytest.raises(openai.AuthenticationError) as caught:
            configs.model("local")("hello", stream=stream)
        error = caught.value
        shown = [str(error), repr(error), error.message, str(error.body), str(describe(error))]
        shown += traceback.format_exception(error)
        assert all(KEY not in text for text in shown)
        assert "Incorrect API key provided: ***" in str(error)


def test_an_endpoint_that_speaks_something_else_is_told(server: ChatServer, configs: ModelConfigs) -> None:
    configs.add(config(model_name="page", client_args={"base_url": server.url}))
    for stream in (False, True):
        with pytest.raises(ZmqAgentsError, match=r"gave no chat completion; check the path in its base_url"):
            configs.model("local")("hello", stream=stream)


def test_an_answer_without_text_is_empty_text(server: ChatServer, configs: ModelConfigs) -> None:
    configs.add(config(model_name="silent", client_args={"base_url": server.url}))
    assert configs.model("local")("hello") == ""


def test_a_client_does_not_pickle() -> None:
    configs = ModelConfigs(config(client_args={"base_url": "http://127.0.0.1:1/v1"}))
    with pytest.raises(TypeError, match="stays on its host"):
        pickle.dumps(configs.model("local"))
    configs.close()


# ---------------------------------------------------------------- inside a call


class Host:
    """What a call knows of its host; a model asks nothing of it."""

    server_id = "test"

    def model_config(self, name: str) -> dict[str, Any]:
        raise NotImplementedError

    def model(self, name: str) -> Any:
        raise NotImplementedError

    def client(self) -> Any:
        raise NotImplementedError


@pytest.fixture
def call() -> Iterator[RunningCall]:
    call = RunningCall(cast("HostServices", Host()), "c1", "reader", "reply")
    token = running_call.set(call)
    yield call
    running_call.reset(token)


def test_a_cancelled_call_stops_in_the_middle_of_a_stream(
    server: ChatServer, configs: ModelConfigs, call: RunningCall
) -> None:
    configs.add(config(client_args={"base_url": server.url}))
    pieces = configs.model("local").stream("hello")
    assert next(pieces) == "you "
    call.cancel()
    with pytest.raises(CallCancelled):
        next(pieces)
    with pytest.raises(CallCancelled):
        configs.model("local")("never sent")
    assert len(server.requests) == 1


def test_a_request_lasts_no_longer_than_the_calls_deadline(
    server: ChatServer, configs: ModelConfigs, call: RunningCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openai

    configs.add(config(client_args={"base_url": server.url, "max_retries": 0}))
    model = configs.model("local")
    release = threading.Event()
    monkeypatch.setattr(ChatHandler, "answer", lambda *_: release.wait(5))
    call.deadline = time.monotonic() + 0.2
    started = time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        model("hello")
    assert time.monotonic() - started < 4
    release.set()


def test_a_model_can_be_made_without_a_registry(server: ChatServer) -> None:
    model = ChatModel(config(client_args={"base_url": server.url}))
    assert model("hello") == "you said: hello"
    model.close()
