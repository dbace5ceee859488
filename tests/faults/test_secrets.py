"""A model configuration stays on its host, wherever the code of an agent keeps it."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import client_of, host
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, SerializationError

SECRET = "sk-for-nobody-else"
CONFIG = {
    "config_name": "far", "model_type": "openai_chat", "api_key": SECRET,
    "client_args": {"default_headers": {"Authorization": SECRET}}, "list": [{"api_key": SECRET}],
}  # fmt: skip


class Careless(AgentBase):
    """Keeps its configuration where every caller may look."""

    def __init__(self) -> None:
        super().__init__()
        self.config = self.model_config("far")
        self.client_args = self.config["client_args"]
        self.memory = [copy.deepcopy(self.config)]

    def tell(self) -> Any:
        return {"mine": [self.config]}

    def tell_copy(self) -> Any:
        return self.config.copy()

    def tell_part(self) -> Any:
        return self.config["list"]

    def its_name(self) -> str:
        return str(json.loads(json.dumps(pickle.loads(pickle.dumps(self.config))))["config_name"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RpcAgentServerLauncher]:
    path: Path = tmp_path_factory.mktemp("models") / "models.json"
    path.write_text(json.dumps(CONFIG))
    with host(Careless, model_config_path=str(path)) as launcher:
        yield launcher


@pytest.fixture
def careless(server: RpcAgentServerLauncher) -> Iterator[Any]:
    with client_of(server) as client:
        yield client.create_agent(Careless)


@pytest.mark.parametrize("name", ["config", "client_args"])
def test_a_configuration_kept_as_a_public_attribute_is_not_sent(careless: Any, name: str) -> None:
    with pytest.raises(SerializationError, match="stays on its host") as failed:
        getattr(careless, name)
    assert SECRET not in str(failed.value)


@pytest.mark.parametrize("method", ["tell", "tell_copy", "tell_part"])
def test_a_configuration_in_a_result_is_not_sent(careless: Any, method: str) -> None:
    with pytest.raises(SerializationError, match="stays on its host") as failed:
        getattr(careless, method)()
    assert SECRET not in str(failed.value)


def test_a_configuration_in_an_agents_memory_is_not_sent(
    server: RpcAgentServerLauncher, careless: Any, client: RpcClient
) -> None:
    with pytest.raises(SerializationError, match="stays on its host"):
        client.get_agent_memory(careless.agent_id)


def test_the_agents_own_code_does_with_it_what_it_likes(careless: Any) -> None:
    assert careless.its_name() == "far"
