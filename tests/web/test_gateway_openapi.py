"""The OpenAPI of a gateway: schemathesis makes requests of it, right ones and wrong ones, and looks at the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from gateway_world import World, gateway

pytest.importorskip("schemathesis")

import requests
import schemathesis

pytestmark = [pytest.mark.program, pytest.mark.timeout(300)]
# Without those that fail, wait or call others as they are told.
METHODS = [
    "shop/add", "shop/order", "shop/moments", "shop/echo", "shop/size", "shop/cancelled", "talker/reply",
    "talker/tokens", "listener/reply",
]  # fmt: skip
EXAMPLES = 25


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with gateway() as world:
        yield world


@pytest.fixture(scope="module")
def operations(world: World) -> dict[str, Any]:
    schema: Any = schemathesis.openapi.from_url(f"{world.url}/openapi.json", headers=world.bearer)
    found = [each.ok() for each in schema.get_all_operations()]
    return {operation.path.removeprefix("/agents/"): operation for operation in found}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_answer_is_as_the_openapi_says(
    world: World, operations: dict[str, Any], name: str, mode: schemathesis.GenerationMode
) -> None:
    operation = operations[name]
    with requests.Session() as session:

        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), database=None
        )
        def check(case: Any) -> None:
            case.call_and_validate(session=session, headers={"Authorization": f"Bearer {world.token}"})

        check()
