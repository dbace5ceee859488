"""Names of agents, and what a proxy of a cluster is called."""

from __future__ import annotations

import pytest

from zmqagents.checks import check_cluster_name
from zmqagents.cluster.naming import MAX_NAME_CHARS, agent_name, parse_name, parse_reference
from zmqagents.errors import ConfigError


@pytest.mark.parametrize(
    "text", ["Account/ann", "Account/a/b/c", "Konto/Jörg Müller", "A/" + "x" * (MAX_NAME_CHARS - 2)]
)
def test_a_name_is_a_class_and_all_behind_the_first_slash(text: str) -> None:
    name = parse_name(text)
    assert str(name) == text
    assert name == agent_name(*text.split("/", 1))


@pytest.mark.parametrize(
    "text", ["", "ann", "/ann", "Account/", "Account/a\nb", "Account/\x00", "A/" + "x" * (MAX_NAME_CHARS - 1)]
)
def test_what_is_no_name_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        parse_name(text)


def test_a_reference_names_its_cluster() -> None:
    reference = parse_reference("cluster:shop/Account/a/b")
    assert (reference.cluster, reference.agent.cls, reference.agent.key) == ("shop", "Account", "a/b")
    assert str(reference) == "cluster:shop/Account/a/b"


@pytest.mark.parametrize(
    "text", ["shop/Account/ann", "cluster:shop", "cluster:sh}op/Account/ann", "cluster:/Account/ann"]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_reference(text)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "{a}", "x" * 41, 7])
def test_a_cluster_is_called_by_plain_letters(name: str) -> None:
    with pytest.raises(ConfigError, match="cluster's name"):
        check_cluster_name(name)
