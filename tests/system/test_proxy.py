"""What callers hold: proxies and results, how they look, travel and wait."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import gc
import inspect
import os
import pickle
import pydoc
import subprocess
import sys
import threading
from typing import Any

import pytest

from actors import Desk, Node, client_of, host, within
from zmqagents import (
    AgentProxy,
    AsyncResult,
    CallTimeout,
    ResultExpired,
    RpcAgentServerLauncher,
    RpcClient,
    UnknownTask,
    codec,
    errors,
)
from zmqagents.client.proxy import RemoteMethod, bind_reference

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def held(latch: AgentProxy) -> AsyncResult[Any]:
    """A result that is not there until the latch is released."""
    result: AsyncResult[Any] = latch.hold_async([1, 2, 3])
    latch.entered()
    return result


# ---------------------------------------------------------------- a proxy looks like the agent


def test_names_signatures_and_help_need_no_host() -> None:
    with host() as launcher, client_of(launcher) as client:
        desk = client.create_agent(Desk)
    # The host is gone.
    assert {"reply", "echo", "add", "soon", "agent_id"} <= set(dir(desk))
    assert {name for name in dir(desk) if name.startswith("_")} == {"__call__"}
    signature = inspect.signature(desk.reply)
    assert list(signature.parameters) == ["x", "twice"]
    assert signature.parameters["twice"].kind is inspect.Parameter.KEYWORD_ONLY
    kinds = [parameter.kind.description for parameter in inspect.signature(desk.add).parameters.values()]
    assert kinds == ["positional-only"] * 2 + ["variadic positional", "keyword-only", "variadic keyword"]
    assert inspect.signature(desk.echo).parameters["x"].annotation == "Any"
    assert "Give ``x`` back" in pydoc.render_doc(desk.reply)
    assert desk.reply.__name__ == "reply"
    assert desk.__doc__ == "Takes and gives values of every kind."


def test_a_proxy_that_came_from_elsewhere_has_signatures_too(client: RpcClient, desk: AgentProxy) -> None:
    there = client.create_agent(Desk).echo(desk)
    assert str(inspect.signature(there.reply)) == str(inspect.signature(desk.reply))
    assert there.patient(timeout=3) == 3


@pytest.mark.parametrize("text", ["(self, x=<unset>)", "(self, x=<a NUL: \0>)", "", "(self"])
def test_a_method_whose_signature_is_no_python_takes_anything(client: RpcClient, text: str) -> None:
    proxy = bind_reference(codec.AgentRef("s", client.address, "nobody", "x:Y", {"go": f"value {text}"}))
    assert str(inspect.signature(proxy.go)) == "(*args, **kwargs)"


def test_a_proxy_shows_class_id_and_place(desk: AgentProxy, client: RpcClient) -> None:
    assert "Desk" in repr(desk)
    assert desk.agent_id in repr(desk)
    assert client.address in repr(desk)


def test_attributes_of_a_proxy_cannot_be_set_or_deleted(desk: AgentProxy) -> None:
    with pytest.raises(AttributeError, match="colour"):
        desk.colour = "red"
    with pytest.raises(AttributeError, match="colour"):
        del desk.colour
    assert desk.colour == "grey"


def test_a_proxy_of_what_cannot_be_called_is_no_function(client: RpcClient) -> None:
    proxy = bind_reference(codec.AgentRef("s", client.address, "nobody", "x:Y", {"go": "value"}))
    with pytest.raises(TypeError, match="not callable"):
        proxy()


# ---------------------------------------------------------------- a call to "" would be a request to the host itself

NO_AGENTS = ["", "two\nlines", "x" * 256, b"desk", None]


@pytest.mark.parametrize("agent_id", NO_AGENTS)
def test_a_reference_to_what_is_no_agent_is_not_bound(client: RpcClient, agent_id: Any) -> None:
    server_id = client.get_server_info()["server_id"]
    ref = codec.AgentRef(server_id, client.address, agent_id, "x:Y", {"get_server_info": "value ()"})
    with pytest.raises(errors.RemoteProtocolError):
        bind_reference(ref)
    with pytest.raises(errors.RemoteProtocolError):
        pickle.loads(pickle.dumps(Pickled(ref)))
    with pytest.raises(errors.RemoteProtocolError):
        bind_reference(codec.TaskRef(agent_id, server_id, client.address))


class Pickled:
    """Pickles as a proxy does."""

    def __init__(self, ref: codec.AgentRef) -> None:
        self.ref = ref

    def __reduce__(self) -> tuple[Any, ...]:
        return bind_reference, (self.ref,)


@pytest.mark.parametrize("agent_id", NO_AGENTS)
def test_neither_a_proxy_nor_a_method_calls_the_host_itself(client: RpcClient, agent_id: Any) -> None:
    with pytest.raises(errors.UnknownAgent):
        AgentProxy(client.link, agent_id, "x:Y", "", {"get_server_info": ["value", "()", ""]})
    with pytest.raises(errors.UnknownAgent):
        RemoteMethod(client.link, agent_id, "get_server_info", ["value", "()", ""], None)


def test_a_client_that_names_no_agent_is_told_so(client: RpcClient) -> None:
    for ask in (client.get_agent, client.delete_agent, client.get_agent_memory):
        with pytest.raises(errors.UnknownAgent):
            ask("")
    with pytest.raises(errors.UnknownTask):
        client.get_result("")
    with pytest.raises(errors.ConfigError):
        client.create_agent(Desk, agent_id="")


@pytest.mark.parametrize(
    "address",
    ["", "nowhere", ":1", "h:", "h:0", "h:65536", "h:1x", "h:\u0663", "a b:1", "a/b:1", "ipc:", "ipc:relative",
     "x" * 600, "ipc:/\0abstract", 7, None],
)  # fmt: skip
def test_a_reference_to_what_is_no_address_is_not_bound(address: Any) -> None:
    with pytest.raises((errors.RemoteProtocolError, errors.HostUnreachable)):
        bind_reference(codec.AgentRef("s", address, "desk", "x:Y", {}))
    with pytest.raises((errors.RemoteProtocolError, errors.HostUnreachable)):
        bind_reference(codec.TaskRef("t-1", "s", address))


# ---------------------------------------------------------------- a proxy travels as a reference


def test_a_proxy_as_an_argument_is_a_proxy_there(client: RpcClient, desk: AgentProxy) -> None:
    node = client.create_agent(Node)
    assert node.ask(desk, "echo", "hi").result() == "hi"
    assert desk.type_of(node) == "AgentProxy"


def test_proxies_in_containers_arrive_and_come_back_as_proxies(client: RpcClient, desk: AgentProxy) -> None:
    other = client.create_agent(Desk)
    back = desk.echo({"a": [other, (desk, {"b": other})]})
    assert back == {"a": [other, (desk, {"b": other})]}
    assert back["a"][0].echo(1) == 1


def test_a_proxy_that_came_back_uses_the_connection_that_it_came_by(server: RpcAgentServerLauncher) -> None:
    with client_of(server, transport="tcp") as client:
        desk = client.create_agent(Desk)
        before = client.get_server_info()["clients"]
        assert desk.echo(desk).echo(1) == 1
        assert client.get_server_info()["clients"] == before


def test_pickling_a_proxy_gives_a_proxy(desk: AgentProxy) -> None:
    again = pickle.loads(pickle.dumps(desk))
    assert again == desk
    assert again.echo(1) == 1
    assert again(2).result() == 2


def test_references_that_an_earlier_version_has_pickled_are_read_by_a_new_process(desk: AgentProxy) -> None:
    packed = pickle.dumps([desk, desk(2)], protocol=0)
    assert packed.count(b"czmqagents.client.proxy\n") == 1  # the second time it is a place in the pickle's memo
    old = packed.replace(b"czmqagents.client.proxy\n", b"czmqagents.proxy\n")
    program = "import pickle, sys; agent, two = pickle.load(sys.stdin.buffer); print(agent.echo(1), two.result())"
    ended = subprocess.run([sys.executable, "-c", program], input=old, capture_output=True, timeout=60, check=False)
    assert (ended.stdout.split(), ended.stderr) == ([b"1", b"2"], b"")


def test_the_codec_takes_a_proxy_as_a_reference(desk: AgentProxy) -> None:
    encoded = codec.encode({"d": desk})
    ref = codec.decode(encoded.payload, encoded.buffers, resolve=lambda ref: ref)["d"]
    assert (ref.agent_id, ref.class_name) == (desk.agent_id, "actors:Desk")
    assert bind_reference(ref) == desk


def test_a_copy_of_a_proxy_is_the_same_agent(desk: AgentProxy) -> None:
    assert copy.copy(desk) == desk
    assert copy.deepcopy([desk]) == [desk]


def test_proxies_are_equal_when_they_mean_the_same_agent(server: RpcAgentServerLauncher, desk: AgentProxy) -> None:
    with client_of(server, transport="tcp") as other:
        same = other.get_agent(desk.agent_id)
        assert same == desk
        assert hash(same) == hash(desk)
        assert len({same, desk}) == 1
        assert other.create_agent(Desk) != desk
    with RpcClient("127.0.0.1", server.port, timeout=5) as other:
        assert other.get_agent(desk.agent_id) == desk
    assert desk != "desk"


def test_a_proxy_reaches_its_agent_from_another_process(desk: AgentProxy) -> None:
    desk.bump()
    script = "import pickle, sys; proxy = pickle.load(sys.stdin.buffer); print(proxy.bump())"
    assert _python(script, pickle.dumps(desk)).stdout == "2\n"


# ---------------------------------------------------------------- a result is a Future


def test_a_result_tells_how_far_it_is(latch: AgentProxy, held: AsyncResult[Any]) -> None:
    assert not held.done()
    assert not held.cancelled()
    assert "pending" in repr(held)
    latch.release()
    assert held.result() == [1, 2, 3]
    assert held.done()
    assert held.exception() is None
    assert "finished" in repr(held)
    assert held.task_id in repr(held)


def test_result_and_exception_wait_no_longer_than_asked(latch: AgentProxy, held: AsyncResult[Any]) -> None:
    for ask in (held.result, held.exception):
        with pytest.raises(CallTimeout), within(1):
            ask(timeout=0.05)
        with pytest.raises(TimeoutError), within(1):
            ask(0)
    latch.release()
    assert held.result(timeout=5) == [1, 2, 3]  # the wait was over, the call was not


def test_callbacks_run_once_the_result_is_there(latch: AgentProxy, held: AsyncResult[Any]) -> None:
    seen: list[Any] = []
    called = threading.Event()

    def on_done(result: Any) -> None:
        seen.append(result)
        called.set()

    held.add_done_callback(on_done)
    assert seen == []
    latch.release()
    assert called.wait(5)
    assert seen == [held]
    held.add_done_callback(seen.append)
    assert seen == [held, held]


def test_an_exception_in_a_callback_disturbs_nobody(
    latch: AgentProxy, held: AsyncResult[Any], caplog: pytest.LogCaptureFixture
) -> None:
    for odd in (ValueError("callback"), SystemExit(3), KeyboardInterrupt()):

        def fail(_: Any, odd: BaseException = odd) -> None:
            raise odd

        held.add_done_callback(fail)
    second = latch.mark_later(2)
    latch.release()
    assert held.result(5) == [1, 2, 3]
    assert second.result(5) == 2


def test_a_blocking_call_in_a_callback_works_or_says_why_not(
    client: RpcClient, latch: AgentProxy, desk: AgentProxy, held: AsyncResult[Any]
) -> None:
    done = threading.Event()
    seen: list[Any] = []

    def on_done(_: Any) -> None:
        for ask in (lambda: desk.echo(1), lambda: desk.later(1).result(), lambda: client.get_agent(desk.agent_id)):
            try:
                seen.append(ask())
            except Exception as exc:
                seen.append(exc)
        done.set()

    held.add_done_callback(on_done)
    latch.release()
    assert done.wait(3)
    for one, value in zip(seen, [1, 1, desk], strict=True):
        assert isinstance(one, errors.BlockingCallError) or one == value
    assert desk.echo(2) == 2


def test_the_functions_of_concurrent_futures_take_results(
    latch: AgentProxy, desk: AgentProxy, held: AsyncResult[Any]
) -> None:
    quick = desk.later(1)
    done, waiting = concurrent.futures.wait([held, quick], return_when=concurrent.futures.FIRST_COMPLETED)
    assert (done, waiting) == ({quick}, {held})
    latch.release()
    assert set(concurrent.futures.as_completed([held, quick], timeout=5)) == {held, quick}


def test_wait_of_concurrent_futures_sees_a_cancelled_result(held: AsyncResult[Any]) -> None:
    threading.Timer(0.05, held.cancel).start()
    done, _ = concurrent.futures.wait([held], timeout=5)
    assert done == {held}
    with pytest.raises(concurrent.futures.CancelledError):
        held.result()
    with pytest.raises(concurrent.futures.CancelledError):
        held.exception()


def test_a_failed_result_raises_for_everyone_and_every_time(desk: AgentProxy) -> None:
    failed = desk.plus(1, "x")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        outcomes = [pool.submit(failed.result).exception() for _ in range(4)]
    assert [type(outcome).__name__ for outcome in outcomes] == ["TypeError"] * 4
    assert isinstance(failed.exception(), TypeError)


def test_two_threads_wait_for_one_result(latch: AgentProxy, held: AsyncResult[Any]) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(held.result, 5) for _ in range(2)]
        latch.release()
        assert [one.result() for one in waiting] == [[1, 2, 3]] * 2


# ---------------------------------------------------------------- asyncio


def test_a_result_can_be_awaited_again_and_again(desk: AgentProxy) -> None:
    async def main() -> list[Any]:
        result = desk.later(1)
        return [await result, await result, await asyncio.gather(*(desk.soon(i) for i in range(50)))]

    assert asyncio.run(main()) == [1, 1, list(range(50))]


def test_a_failed_result_raises_where_it_is_awaited(desk: AgentProxy) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="unsupported"):
            await desk.plus(1, "x")

    asyncio.run(main())


def test_wrap_future_takes_a_result(desk: AgentProxy) -> None:
    async def main() -> Any:
        return await asyncio.wrap_future(desk.later(1))

    assert asyncio.run(main()) == 1


def test_a_result_that_is_awaited_with_a_time_out_is_cancelled(latch: AgentProxy) -> None:
    async def main() -> None:
        running = latch.sleep_for_ever()
        await asyncio.to_thread(latch.entered)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.ensure_future(_of(running)), 0.05)
        assert running.cancelled()
        assert await asyncio.to_thread(latch.cancel_seen)

    asyncio.run(main())


def test_a_result_may_be_awaited_in_one_loop_and_then_in_another(desk: AgentProxy) -> None:
    result = desk.later(1)
    assert asyncio.run(_of(result)) == 1
    assert asyncio.run(_of(result)) == 1


def test_a_loop_that_was_closed_before_the_result_came_disturbs_nobody(
    latch: AgentProxy, held: AsyncResult[Any]
) -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(_of(held))
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()
    latch.release()
    assert latch.mark(1) == 1


def test_an_asyncio_program_may_make_blocking_calls(desk: AgentProxy) -> None:
    async def main() -> Any:
        return desk.echo(1), desk.later(2).result(), desk.colour, await asyncio.to_thread(desk.echo, 3)

    assert asyncio.run(main()) == (1, 2, "grey", 3)


# ---------------------------------------------------------------- a result reads like its value


def test_items_of_a_result_are_those_of_its_value(desk: AgentProxy) -> None:
    result = desk.later([10, 20, 30])
    assert result[1] == 20
    assert len(result) == 3
    assert list(result) == [10, 20, 30]
    assert 20 in result
    assert result.value.index(30) == 2
    assert desk.later({"k": 1})["k"] == 1
    assert desk.later(1 + 2j).value.imag == 2


def test_a_result_is_true_whatever_its_value_and_does_not_wait(held: AsyncResult[Any], desk: AgentProxy) -> None:
    with within(0.5):
        assert bool(held)
    empty = desk.later([])
    assert empty.result() == []
    assert bool(empty)


# ---------------------------------------------------------------- a result travels as a reference


def test_a_pickled_result_is_found_again(desk: AgentProxy, latch: AgentProxy, held: AsyncResult[Any]) -> None:
    copies = [pickle.loads(pickle.dumps(held)), copy.copy(held), copy.deepcopy(held)]
    latch.release()
    assert [one.result() for one in copies] == [[1, 2, 3]] * 3
    assert {one.task_id for one in copies} == {held.task_id}


def test_a_result_is_found_again_from_another_process(server: RpcAgentServerLauncher, desk: AgentProxy) -> None:
    finished, failed = desk.later({"v": None}), desk.plus(1, "x")
    concurrent.futures.wait([finished, failed])
    script = f"""
import pickle, sys
from zmqagents import RpcClient
print(pickle.load(sys.stdin.buffer).result(5))
with RpcClient("localhost", {server.port}) as client:
    print(client.get_result({finished.task_id!r}).result(5))
    try:
        client.get_result({failed.task_id!r}).result(5)
    except TypeError as exc:
        print(exc)
"""
    out = _python(script, pickle.dumps(finished)).stdout
    assert out.startswith("{'v': None}\n{'v': None}\nunsupported operand")


def test_a_result_is_waited_for_from_elsewhere(client: RpcClient, latch: AgentProxy, held: AsyncResult[Any]) -> None:
    again = client.get_result(held.task_id)
    with pytest.raises(CallTimeout):
        again.result(0.05)
    impatient = client.get_result(held.task_id, timeout=0.05)
    with pytest.raises(CallTimeout), within(1):
        impatient.result(5)
    latch.release()
    assert again.result() == [1, 2, 3]


def test_a_result_that_was_never_is_unknown(client: RpcClient) -> None:
    for task_id in ("aaaaaaaaaaaaaaaa-1", "not a task", "", "x" * 255, "x" * 300, "\udc80"):
        with pytest.raises(UnknownTask), within(1):
            client.get_result(task_id).result(5)


def test_the_oldest_result_of_a_full_store_has_expired() -> None:
    with host(max_pool_size=2) as launcher, client_of(launcher) as client:
        desk = client.create_agent(Desk)
        results = [desk.later(i) for i in range(4)]
        concurrent.futures.wait(results)
        with pytest.raises(ResultExpired, match=r"dropped"), within(1):
            client.get_result(results[0].task_id).result(5)
        assert client.get_result(results[3].task_id).result(5) == 3
        assert results[0].result() == 0  # whoever had made the call has its value


def test_a_result_expires_by_age() -> None:
    with host(max_expire_time=0.2) as launcher, client_of(launcher) as client:
        result = client.create_agent(Desk).later(None)
        assert result.result() is None
        assert client.get_result(result.task_id).result() is None
        threading.Event().wait(0.3)  # the age is what is tested
        with pytest.raises(ResultExpired):
            client.get_result(result.task_id).result()


def test_the_result_of_a_blocking_call_is_not_kept(client: RpcClient, desk: AgentProxy) -> None:
    before = client.get_server_info()["store"]["done"]
    desk.echo(1)
    assert client.get_server_info()["store"]["done"] == before


def test_a_dropped_result_does_not_keep_anything(client: RpcClient, desk: AgentProxy) -> None:
    result = desk.later(1)
    result.result()
    there = [one for one in gc.get_objects() if isinstance(one, AsyncResult)]
    del result, there
    gc.collect()
    assert desk.echo(1) == 1
    assert not [one for one in gc.get_objects() if type(one) is AsyncResult and f" {desk.agent_id}." in repr(one)]


async def _of(result: AsyncResult[Any]) -> Any:
    return await result


def _python(script: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run ``script`` in a fresh interpreter; it must end well, and say nothing on stderr."""
    done = subprocess.run([sys.executable, "-c", script], input=stdin, capture_output=True, env=os.environ, timeout=30)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return subprocess.CompletedProcess(done.args, 0, done.stdout.decode(), "")
