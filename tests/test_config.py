"""The settings of a host: every bound, every refusal in words, and no password in what is shown."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqagents.config import BrokerConfig, Parent, check_threads, generate_server_id, without_password
from zmqagents.errors import ConfigError
from zmqagents.telemetry.settings import LogSettings

COUNTS = [
    "capacity", "max_pool_size", "max_pool_bytes", "max_message_bytes", "max_structured_bytes", "max_unread_bytes",
    "max_calls_per_client", "max_calls", "max_mailbox", "max_agents", "max_queued_bytes", "max_children",
]  # fmt: skip
SECONDS = ["max_expire_time", "max_timeout_seconds", "switch_interval_s", "resume_s"]
SWITCHES = ["local_mode", "private", "fast_lane", "plain_types", "otel"]
OTHERS = ["host", "port", "pool_type", "redis_url", "agent_dir", "server_id", "studio_url", "model_config_path",
          "max_threads", "grace_s", "hang_limit_s", "insecure", "file_roots", "agents", "redis_namespace",
          "types", "isolation", "processes", "parent", "logs", "cluster", "lease_s", "labels",
          "record_forms"]  # fmt: skip


def refused(text: str, **settings: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(text)}"):
        BrokerConfig(**settings)


def test_a_free_threaded_build_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    check_threads()
    monkeypatch.setattr(sys, "abiflags", "t")
    with pytest.raises(ConfigError, match=f"^{re.escape(sys.executable)} is a free-threaded build"):
        check_threads()


def test_every_setting_is_tested_here() -> None:
    assert {field.name for field in dataclasses.fields(BrokerConfig)} == {*COUNTS, *SECONDS, *SWITCHES, *OTHERS}


def test_the_defaults_are_those_of_the_launcher() -> None:
    config = BrokerConfig()
    assert (config.host, config.port, config.capacity, config.pool_type) == ("localhost", None, 32, "local")
    assert (config.redis_url, config.max_pool_size) == ("redis://localhost:6379", 8192)
    assert (config.max_expire_time, config.max_timeout_seconds, config.local_mode) == (7200, 5, False)
    assert (config.agent_dir, config.studio_url, config.model_config_path) == (None, None, None)
    assert not config.private
    assert not config.insecure


def test_settings_do_not_change_and_a_changed_copy_is_checked_anew() -> None:
    config = BrokerConfig(capacity=3, port=5000)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.capacity = 4  # type: ignore[misc]
    copy = config.replace(port=5001)
    assert (copy.port, copy.capacity, copy.server_id) == (5001, 3, config.server_id)
    with pytest.raises(ConfigError, match=r"^capacity must be a whole number of at least 1, not 0$"):
        config.replace(capacity=0)
    with pytest.raises(TypeError, match="no_such_setting"):
        config.replace(no_such_setting=1)


def test_types_are_the_names_of_packages_or_modules() -> None:
    assert BrokerConfig(types=["pydantic_ai", "shop.orders"]).types == ("pydantic_ai", "shop.orders")  # type: ignore[arg-type]
    assert BrokerConfig(types="shop").types == ("shop",)  # type: ignore[arg-type]
    for wrong in ("a b", "", "shop..orders", "./shop", 3):
        refused("types are", types=[wrong])
    refused("types are", types=3)


def config_with(name: str, value: Any) -> BrokerConfig:
    return BrokerConfig(**{name: value})


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_a_whole_number_from_1_on(name: str) -> None:
    assert getattr(config_with(name, 1), name) == 1
    assert getattr(config_with(name, 1000), name) == 1000
    for wrong in (0, -1, 1.0, "8", True, None, [1]):
        refused(f"{name} must be a whole number of at least 1, not {wrong!r}", **{name: wrong})


@pytest.mark.parametrize("name", [*SECONDS, "grace_s"])
def test_a_time_is_a_number_of_seconds(name: str) -> None:
    for good in (0.001, 1, 2.5, 1e8):
        assert getattr(config_with(name, good), name) == good
    least = "0 or more" if name == "grace_s" else "more than 0"
    for wrong in (-0.1, 1e9, float("inf"), float("nan"), "5", True, None):
        refused(f"{name} must be a number of seconds, {least}, not {wrong!r}", **{name: wrong})


def test_only_the_grace_may_be_zero() -> None:
    assert BrokerConfig(grace_s=0).grace_s == 0
    for name in SECONDS:
        refused(f"{name} must be a number of seconds, more than 0, not 0", **{name: 0})


def test_a_hang_limit_is_a_number_of_seconds_or_none_at_all() -> None:
    assert BrokerConfig().hang_limit_s is None
    assert BrokerConfig(hang_limit_s=0.5).hang_limit_s == 0.5
    for wrong in (0, -1, "1", True):
        refused("hang_limit_s must be a number of seconds, more than 0", hang_limit_s=wrong)


def test_a_member_of_a_cluster_shares_its_results_and_has_a_lease_and_labels() -> None:
    config = BrokerConfig(cluster="shop", lease_s=1, labels={"zone": "a"})
    assert (config.cluster, config.pool_type, config.lease_s, config.labels) == ("shop", "redis", 1, {"zone": "a"})
    assert (BrokerConfig().cluster, BrokerConfig().pool_type, BrokerConfig().lease_s) == ("", "local", 15.0)
    for wrong in ("a b", "sh/op", "{a}", "x" * 41, 7, None):
        refused(f"a cluster's name must be 1 to 40 letters, digits, '.', '_' or '-', not {wrong!r}", cluster=wrong)
    for seconds in (0.5, 301):
        refused(f"lease_s must be 1 to 300 seconds, not {seconds!r}", lease_s=seconds)
    refused("labels must be a dictionary of texts, such as {'zone': 'a'}, not {'zone': 1}", labels={"zone": 1})
    refused("a private host cannot be a member of a cluster", cluster="shop", private=True)


def test_the_threads_are_enough_for_the_capacity() -> None:
    assert BrokerConfig(capacity=5).max_threads == 5 + 1024, "the default leaves room for stand-ins"
    assert BrokerConfig(capacity=5, max_threads=5).max_threads == 5
    refused("max_threads (4) must be at least capacity (5)", capacity=5, max_threads=4)
    refused("max_threads must be a whole number of at least 0, not -1", max_threads=-1)
    refused("max_threads must be a whole number of at least 0, not 1.5", max_threads=1.5)


@given(st.integers(0, 65535))
def test_any_port_number_will_do(port: int) -> None:
    assert BrokerConfig(port=port).port == port


@pytest.mark.parametrize("port", [-1, 65536, 80.0, "80", True])
def test_a_port_out_of_range_is_refused(port: object) -> None:
    refused(f"port must be a whole number from 0 (any free port) to 65535, not {port!r}", port=port)


# ---------------------------------------------------------------- names, places, addresses


@pytest.mark.parametrize("host", ["localhost", "10.0.0.7", "::1", "agents.example.org", "bücher.example"])
def test_a_host_is_a_name_or_an_address(host: str) -> None:
    assert BrokerConfig(host=host).host == host


@pytest.mark.parametrize("host", ["", "a b", "a\n", "tcp://a", "a/b", None, 7, b"a"])
def test_what_cannot_be_a_host_is_refused(host: object) -> None:
    refused(f"host must be a host name or address, not {host!r}", host=host)


@pytest.mark.parametrize("pool_type", ["local", "redis"])
def test_the_two_stores(pool_type: str) -> None:
    assert BrokerConfig(pool_type=pool_type).pool_type == pool_type  # type: ignore[arg-type]


@pytest.mark.parametrize("pool_type", ["", "Redis", "memory", None, ["local"]])
def test_there_is_no_other_store(pool_type: object) -> None:
    refused(f"pool_type must be 'local' or 'redis', not {pool_type!r}", pool_type=pool_type)


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://:pw@h", "unix:///run/redis.sock", "http://[::1]:80/x?y=1"])
@pytest.mark.parametrize("name", ["redis_url", "studio_url"])
def test_a_url_has_a_scheme(name: str, url: str) -> None:
    assert getattr(config_with(name, url), name) == url


@pytest.mark.parametrize("url", ["localhost:6379", "secret@host", "", 7, b"redis://h"])
@pytest.mark.parametrize("name", ["redis_url", "studio_url"])
def test_what_is_no_url_is_refused_without_being_repeated(name: str, url: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be a URL such as ") as caught:
        config_with(name, url)
    assert "secret" not in str(caught.value), "it may hold a password"


def test_an_agent_dir_must_be_there(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.touch()
    assert BrokerConfig(agent_dir=str(tmp_path)).agent_dir == str(tmp_path)
    for wrong in (tmp_path / "gone", file):
        refused(f"agent_dir: {str(wrong)!r} is not a directory; give one that holds .py files", agent_dir=str(wrong))


def test_a_model_config_file_must_be_there(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    file.touch()
    assert BrokerConfig(model_config_path=str(file)).model_config_path == str(file)
    for wrong in (tmp_path / "gone.json", tmp_path):
        refused(f"model_config_path: there is no file {str(wrong)!r}", model_config_path=str(wrong))


@pytest.mark.parametrize("server_id", ["a", "A-1_b.c", "9", "x" * 64])
def test_a_server_id_may_be_chosen(server_id: str) -> None:
    assert BrokerConfig(server_id=server_id).server_id == server_id


@pytest.mark.parametrize("server_id", ["-a", ".a", "a b", "a/b", "../a", "a\n", "ä", "x" * 65])
def test_a_server_id_that_could_not_be_a_file_name_is_refused(server_id: str) -> None:
    refused("server_id must be 1 to 64 letters, digits, '.', '_' or '-'", server_id=server_id)


def test_a_server_id_is_made_where_none_is_chosen() -> None:
    first, second = BrokerConfig(port=5000), BrokerConfig(port=5000)
    assert re.fullmatch(r"localhost-5000-[0-9a-f]{6}", first.server_id)
    assert first.server_id != second.server_id


@given(st.text(max_size=100), st.none() | st.integers(0, 65535))
def test_a_made_server_id_is_valid_whatever_the_host_is_called(host: str, port: int | None) -> None:
    assert BrokerConfig(server_id=generate_server_id(host, port)).server_id


@pytest.mark.parametrize(
    ("host", "port", "start"),
    [
        ("localhost", None, "localhost"),
        ("10.0.0.7", 80, "10-0-0-7-80"),
        ("::", 0, "host"),
        ("x" * 99, 1, "x" * 24 + "-1"),
    ],
)
def test_a_made_server_id_says_where_the_host_is(host: str, port: int | None, start: str) -> None:
    assert re.fullmatch(re.escape(start) + "-[0-9a-f]{6}", generate_server_id(host, port))


def test_without_keys_a_host_stays_on_this_machine_unless_the_words_are_said() -> None:
    assert BrokerConfig().open_to == ""
    assert BrokerConfig(insecure=True, local_mode=True).open_to == "any user of this machine"
    assert BrokerConfig(insecure="yes-i-mean-it", local_mode=True).open_to == "any user of this machine"
    assert BrokerConfig(insecure="yes-i-mean-it").open_to == "every program that can reach this machine"
    refused("insecure opens the host to every program that can reach its port: add --local-mode", insecure=True)
    for wrong in ("yes", "True", "", 1, 0, None):
        refused(f"insecure must be True, False or 'yes-i-mean-it', not {wrong!r}", insecure=wrong, local_mode=True)


def test_file_roots_are_directories_as_they_really_are(tmp_path: Path) -> None:
    real, link, file = tmp_path / "real", tmp_path / "link", tmp_path / "file"
    real.mkdir()
    link.symlink_to(real)
    file.touch()
    assert BrokerConfig().file_roots == ()
    given: Any = [link, str(real), str(tmp_path)]
    assert BrokerConfig(file_roots=given).file_roots == (str(real), str(tmp_path))
    for wrong in (str(file), str(tmp_path / "gone"), "", b"/tmp", 7):
        refused(f"file_roots: {str(wrong)!r} is not a directory", file_roots=[wrong])
    for other in (str(real), real, 7, None):
        refused(f"file_roots must be a list of directories, not {other!r}", file_roots=other)


# ---------------------------------------------------------------- what is shown


def test_a_setting_with_a_password_is_in_no_repr() -> None:
    shown = repr(BrokerConfig(redis_url="redis://:s3cret@db", studio_url="http://me:s3cret@studio", port=7411))
    assert "7411" in shown
    assert "s3cret" not in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:s3cret@db:6379", "redis://***@db:6379"),
        ("rediss://me:s3cret@db/1", "rediss://***@db/1"),
        ("redis://me:s3@cret@db", "redis://***@db"),
        ("http://studio/api#s3cret", "http://studio/api"),
        ("http://[s3cret", "***"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_password(url) == shown
    if "://[" not in url:
        config = BrokerConfig(redis_url=url, studio_url=url)
        assert config.public()["redis_url"] == config.public()["studio_url"] == shown
        assert config.redis_url == url, "the setting itself is whole"


def test_a_url_of_a_socket_is_shown_without_its_secrets() -> None:
    # Pythons differ in whether they keep the empty host of "unix:///".
    assert without_password("unix:///run/redis.sock?password=s3cret").replace("///", "/") == "unix:/run/redis.sock?***"


@given(st.text(max_size=60))
def test_whatever_is_shown_as_a_url_can_be_shown(url: str) -> None:
    assert isinstance(without_password(url), str)


@given(st.from_regex(r"[A-Za-z0-9]{4,12}", fullmatch=True), st.sampled_from(["redis", "rediss", "http"]))
def test_no_password_is_shown(password: str, scheme: str) -> None:
    assert without_password(f"{scheme}://user:{password}@host/0") == f"{scheme}://***@host/0"


def test_all_settings_are_shown() -> None:
    shown = BrokerConfig(studio_url=None).public()
    assert shown.keys() == {field.name for field in dataclasses.fields(BrokerConfig)}
    assert shown["studio_url"] is None
    assert shown["capacity"] == 32


def test_the_settings_are_shown_also_when_what_they_name_has_gone(tmp_path: Path) -> None:
    directory, root, models = tmp_path / "agents", tmp_path / "files", tmp_path / "models.json"
    directory.mkdir()
    root.mkdir()
    models.write_text("{}")
    lock = threading.Lock()  # an argument need not be anything that can be copied
    config = BrokerConfig(
        agent_dir=str(directory),
        file_roots=(str(root),),
        model_config_path=str(models),
        agents={"a": ("A", {"l": lock})},
    )
    directory.rmdir()
    root.rmdir()
    models.unlink()
    shown = config.public()
    assert (shown["agent_dir"], shown["model_config_path"]) == (str(directory), str(models))
    assert shown["file_roots"] == [os.path.realpath(root)]
    assert shown["agents"] == {"a": "A"}


# ---------------------------------------------------------------- agents


def test_agents_are_ids_with_class_names_and_keyword_arguments() -> None:
    assert BrokerConfig().agents == {}
    assert BrokerConfig(agents={"a": ("A", {"x": 1})}).agents == {"a": ("A", {"x": 1})}
    wrongs: list[Any] = [[], {"a": "A"}, {"a": ("A",)}, {"": ("A", {})}, {1: ("A", {})}, {"a": ("A", {1: 2})}]
    for wrong in wrongs:
        refused("agents must be a dictionary of agent ids to pairs", agents=wrong)


def test_the_arguments_of_agents_are_not_shown() -> None:
    assert BrokerConfig(agents={"a": ("A", {"key": "sk-secret"})}).public()["agents"] == {"a": "A"}


def test_agents_run_in_threads_of_the_host_unless_it_is_told_otherwise() -> None:
    assert (BrokerConfig().isolation, BrokerConfig().processes) == ("thread", 0)
    assert BrokerConfig(processes=3).pool_size == 3
    assert BrokerConfig().pool_size == os.cpu_count(), "one for each core"
    refused("isolation must be 'thread', 'process' or 'pool', not 'fork'", isolation="fork")
    refused("processes must be a whole number of at least 0, not -1", processes=-1)


def test_what_status_shows_of_a_parent_has_no_key() -> None:
    parent = Parent("host-1", "localhost:5000", "/run/host.sock", b"secret key")
    config = BrokerConfig(parent=parent, private=True)
    assert config.public()["parent"] == "host-1"
    assert "secret" not in repr(config)
    assert not config.takes_pickles
    assert config.replace(parent=None).takes_pickles


def test_how_a_host_logs_is_checked_like_every_setting() -> None:
    refused("logs: level must be one of debug, info, warning, error, off, not 'loud'", logs=LogSettings("loud"))
    refused("logs: format must be one of text, json, not 'xml'", logs=LogSettings(format="xml"))
    refused("logs: output must be one of log, stderr, off, not 'no'", logs=LogSettings(output="no"))
    refused("logs: what agents print is no JSON", logs=LogSettings(format="json", output="stderr"))
    refused("logs: 'json'", logs="json")
    assert BrokerConfig(logs=LogSettings("info", "json")).public()["logs"]["format"] == "json"
