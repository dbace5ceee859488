"""The options of an agent class: which values are allowed, which go together, and what overrides what."""

from __future__ import annotations

from typing import Any

import pytest

from zmqagents import AgentBase, ConfigError, RpcClient, agent
from zmqagents.agents.options import AgentOptions, Isolation, check_platform
from zmqagents.agents.spec import spec_of

WRONG: list[tuple[str, Any, str]] = [
    ("isolation", "fork", "isolation must be 'thread', 'process', 'pool' or None, not 'fork'"),
    ("isolation", True, "isolation must be .*, not True"),
    ("memory_mb", 0, "memory_mb must be a whole number of at least 32, not 0"),
    ("memory_mb", 512.0, "memory_mb must be a whole number"),
    ("memory_mb", True, "memory_mb must be a whole number"),
    ("max_restarts", -1, "max_restarts must be a whole number of at least 0"),
    ("max_restarts", "3", "max_restarts must be a whole number"),
    ("on_timeout", "wait", "on_timeout must be 'cancel' or 'kill', not 'wait'"),
    ("on_timeout", None, "on_timeout must be"),
    ("persist", "always", "persist must be 'auto', 'idle', 'call' or None"),
    ("persist", ["call"], "persist must be"),
    ("lifetime", "session", "lifetime must be 'host' or 'client', not 'session'"),
    ("idle_s", 0, "idle_s must be a number of seconds above 0, not 0"),
    ("idle_s", "60", "idle_s must be a number of seconds"),
    ("idle_s", float("inf"), "idle_s must be a number of seconds"),
    ("idle_s", True, "idle_s must be a number of seconds"),
    ("placement", "near", "placement must be 'load' or 'local', not 'near'"),
    ("labels", ["gpu"], "labels must be a dict of texts, such as {'zone': 'a'}, not"),
    ("labels", {"gpu": 1}, "labels must be a dict of texts, .* it has 'gpu': 1"),
    ("labels", {"": "yes"}, "labels must be a dict of texts"),
    ("labels", {"gpu": "x" * 5000}, "labels have 5,003 bytes, limit 4,096"),
    ("env", ["A=1"], "env must be a dict of texts, not list"),
    ("env", {"": "x"}, "'' cannot be the name of an environment variable"),
    ("env", {"A=B": "x"}, "'A=B' cannot be the name"),
    ("env", {"A\0": "x"}, "cannot be the name"),
    ("env", {7: "x"}, "7 cannot be the name"),
    ("env", {"THREADS": 1}, "the value of 'THREADS' must be a text"),
    ("env", {"A": "x\0y"}, "must be a text without NUL"),
    ("env", {"A": "x" * 40_000}, "env has 40,001 characters, limit 32,768"),
]


@pytest.mark.parametrize(("name", "value", "text"), WRONG)
def test_a_value_that_is_not_allowed_is_an_error_wherever_it_is_given(name: str, value: Any, text: str) -> None:
    given: dict[str, Any] = {"isolation": "process", name: value}
    with pytest.raises(ConfigError, match=text):
        agent(**given)
    with pytest.raises(ConfigError, match=text):
        AgentOptions().but(given)
    if value is not None:  # there it means that nothing is given
        with pytest.raises(ConfigError, match=text):
            type("Wrong", (AgentBase,), {}, **given)


def test_an_option_that_is_none_is_an_error_that_lists_those_that_there_are() -> None:
    given: dict[str, Any] = {"isolaton": "process"}
    with pytest.raises(ConfigError, match=r"no option isolaton; it has: max_concurrency, .*isolation, memory_mb"):
        agent(**given)


@pytest.mark.parametrize("isolation", [None, "thread", "pool"])
@pytest.mark.parametrize(("name", "value"), [("memory_mb", 512), ("env", {"A": "1"}), ("on_timeout", "kill")])
def test_what_needs_a_process_of_its_own_is_not_dropped_in_silence(isolation: Any, name: str, value: Any) -> None:
    given: dict[str, Any] = {"isolation": isolation, name: value}
    found = "not given beside it" if isolation is None else repr(isolation)
    with pytest.raises(ConfigError, match=f"{name} needs isolation='process', and isolation is {found}"):
        agent(**given)


def test_restarts_mean_nothing_for_a_thread() -> None:
    with pytest.raises(ConfigError, match="max_restarts needs isolation='process' or 'pool'"):
        agent(isolation="thread", max_restarts=3)
    assert AgentOptions(isolation="pool", max_restarts=3).checked().max_restarts == 3
    assert AgentOptions(max_restarts=3).checked().max_restarts == 3  # the host may be set to "pool"


def test_the_options_of_a_class_come_from_its_keywords_and_its_bases() -> None:
    class Embedder(AgentBase, isolation="process", memory_mb=2048, env={"OMP_NUM_THREADS": "1"}):
        """Has a child of its own."""

    class Small(Embedder, memory_mb=256, persist="idle"):
        """The same with less."""

        def save_state(self) -> int:
            return 1

        def load_state(self, state: int) -> None: ...

    class Near(Embedder, isolation="thread"):
        """Lives in the host, where the limits of a child mean nothing."""

    options = spec_of(Small).options
    assert (options.isolation, options.memory_mb, options.persist) == ("process", 256, "idle")
    assert options.env == {"OMP_NUM_THREADS": "1"}
    assert spec_of(Near).options == AgentOptions(isolation="thread", persist=None)


def test_an_agent_may_be_taken_out_of_the_child_that_its_class_asks_for() -> None:
    of_class = AgentOptions(isolation="process", memory_mb=2048, max_restarts=3, env={"A": "1"}, on_timeout="kill")
    assert of_class.but({"isolation": "thread"}).checked() == AgentOptions(isolation="thread")
    assert of_class.but({"isolation": "pool"}).checked() == AgentOptions(isolation="pool", max_restarts=3)
    with pytest.raises(ConfigError, match="memory_mb needs"):
        of_class.but({"isolation": "thread", "memory_mb": 64}).checked()


def test_the_environment_is_a_copy_and_its_values_are_never_shown() -> None:
    given = {"TOKEN": "hunter2"}
    options = AgentOptions(isolation="process", env=given)
    given["TOKEN"] = "changed"
    assert options.env == {"TOKEN": "hunter2"}
    assert "hunter2" not in repr(options)
    with pytest.raises(ConfigError) as refused:
        AgentOptions(env={"TOKEN": "hunter2\0"})
    assert "hunter2" not in str(refused.value)


def test_isolation_other_than_thread_needs_linux() -> None:
    check_platform(None, "darwin")
    check_platform("thread", "darwin")
    kinds: tuple[Isolation, ...] = ("process", "pool")
    for isolation in kinds:
        check_platform(isolation, "linux")
        with pytest.raises(ConfigError, match=f"'{isolation}' needs a host on Linux, and this one is on darwin"):
            check_platform(isolation, "darwin")


def test_wrong_options_of_one_agent_are_refused_before_anything_is_sent() -> None:
    with RpcClient("localhost", 1) as client:  # nothing listens there
        for given in ({"isolation": "fork"}, {"memory_mb": "64"}, {"env": {"TOKEN": 7}}):
            with pytest.raises(ConfigError, match=next(iter(given))):
                client.create_agent(AgentBase, agent_options=given)
        with pytest.raises(ConfigError, match=r"agent_options are max_concurrency, .*, not 'toke'") as refused:
            client.create_agent(AgentBase, agent_options={"toke": "hunter2"})
        assert "hunter2" not in str(refused.value)
        with pytest.raises(ConfigError, match=r"not 'isolatoin'; did you mean 'isolation'\?"):
            client.create_agent(AgentBase, agent_options={"isolatoin": "pool"})
        assert "hunter2" not in repr(client.options(isolation="process", env={"TOKEN": "hunter2"}))
