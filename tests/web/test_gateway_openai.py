"""Agents as models of OpenAI's chat completions, by the official client."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from gateway_world import World, gateway

pytestmark = [pytest.mark.program, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with gateway() as world:
        yield world


@pytest.fixture
def client(world: World) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{world.url}/v1", api_key=world.token, max_retries=0) as client:
        yield client


def said(*texts: str) -> Any:
    return [{"role": "system", "content": "be kind"}, *({"role": "user", "content": text} for text in texts)]


def test_agents_that_reply_are_the_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["listener", "slow", "talker"]
    assert client.models.retrieve("talker").owned_by.endswith(":Talker")
    for other in ("shop", "hidden"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(other)


def test_a_reply_gets_the_text_of_the_last_message_of_the_user(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="talker", messages=said("first", "second"))
    assert answer.choices[0].message.content == "you said: second"
    assert answer.choices[0].finish_reason == "stop"
    parts = [{"role": "user", "content": [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]}]
    answer = client.chat.completions.create(model="talker", messages=parts)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "you said: in parts"
    answer = client.chat.completions.create(model="talker", messages=said("x"), metadata={"polite": True})  # type: ignore[dict-item]
    assert answer.choices[0].message.content == "you said: x, please"


def test_a_reply_that_takes_a_list_gets_all_messages(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="listener", messages=said("a", "b"))
    assert answer.choices[0].message.content == "system user user"


def test_an_answer_comes_piece_by_piece(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="talker", messages=said("one two three"), stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "one ", "two ", "three ", None]
    assert chunks[-1].choices[0].finish_reason == "stop"
    whole = client.chat.completions.create(model="listener", messages=said("a"), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in whole) == "system user"


def test_a_stream_that_is_closed_ends_the_agents_generator(world: World, client: openai.OpenAI) -> None:
    before = world.call("slow", "ended")[1]
    with client.chat.completions.create(model="slow", messages=said("go"), stream=True) as stream:
        pieces = [next(stream).choices[0].delta.content for _ in range(3)]
    assert pieces == ["", "and ", "and "]
    assert world.becomes("slow", "ended", before + 1)


def test_a_client_that_waits_no_longer_cancels_the_call(world: World, client: openai.OpenAI) -> None:
    before = world.call("slow", "ended")[1]
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="slow", messages=said("go"), timeout=1.0)
    assert world.becomes("slow", "ended", before + 1)


def test_errors_are_those_that_the_client_knows(world: World, client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="I do not like that"):
        client.chat.completions.create(model="slow", messages=said("fail"))
    with pytest.raises(openai.APIError, match="I do not like that"):
        list(client.chat.completions.create(model="slow", messages=said("fail"), stream=True))
    with pytest.raises(openai.NotFoundError, match="no agent 'hidden' is shown"):
        client.chat.completions.create(model="hidden", messages=said("x"))
    with pytest.raises(openai.UnprocessableEntityError, match="none of them is of the role user"):
        client.chat.completions.create(model="talker", messages=[{"role": "system", "content": "x"}])
    with (
        openai.OpenAI(base_url=f"{world.url}/v1", api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()


def test_two_hundred_completions_at_once(client: openai.OpenAI) -> None:
    def ask(number: int) -> str | None:
        answer = client.chat.completions.create(model="talker", messages=said(f"number {number}"))
        return answer.choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, range(200))) == [f"you said: number {number}" for number in range(200)]
