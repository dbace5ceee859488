"""The examples: the agents in this process on the real standard library, and the demo as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from examples.index import demo
from scale import pick
from zmqagents import Progress
from zmqagents.agents.context import RunningCall, running_call
from zmqagents.agents.loader import load_agents_from_dir
from zmqagents.agents.spec import spec_of
from zmqagents.errors import CallCancelled

EXAMPLES = Path(__file__).parents[2] / "examples"
Coordinator, Indexer = load_agents_from_dir(EXAMPLES / "index" / "agents", strict=True)
indexing: Any = sys.modules[Indexer.__module__]


class Beside:
    """An agent whose methods return futures, as those of a proxy do; here the work runs in a thread."""

    def __init__(self, agent: Any, pool: ThreadPoolExecutor) -> None:
        self._agent, self._pool = agent, pool

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._agent, name)

        def start(*args: Any, **kwargs: Any) -> Future[Any]:
            return self._pool.submit(method, *args, **kwargs)

        return start


@pytest.fixture(scope="module")
def indexers() -> Iterator[list[Any]]:
    with ThreadPoolExecutor(4) as pool:
        made = [Beside(Indexer(share=number, shares=4), pool) for number in range(4)]
        for result in [indexer.index() for indexer in made]:
            assert result.result(timeout=60)["entries"] > 300
        yield made


# ---------------------------------------------------------------- the agents


def test_the_directory_offers_the_two_agents() -> None:
    assert (Coordinator.__name__, Indexer.__name__) == ("Coordinator", "Indexer")


def test_the_methods_return_what_the_demo_counts_on() -> None:
    methods = spec_of(Indexer).methods
    returns = {name: method.returns for name, method in methods.items() if name != "__call__"}
    assert returns == {
        "index": "future", "size": "value", "reply": "future", "search": "future", "statistics": "future",
    }  # fmt: skip
    assert methods["size"].concurrent
    assert spec_of(Coordinator).methods["reply"].returns == "future"


def test_the_shares_divide_the_whole_library() -> None:
    everything = [name for name, _ in indexing.modules_of_library()]
    shares = [[name for name, _ in Indexer(share=number, shares=3).modules] for number in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(everything)
    assert len(set(everything)) == len(everything) > 400
    assert {"json", "json.decoder", "math", "itertools", "posixpath", "tempfile"} <= set(everything)
    assert not any(part in ("test", "tests") for name in everything for part in name.split("."))


def test_an_indexer_reads_its_share_once_and_reports_progress() -> None:
    indexer: Any = Indexer(share=5, shares=60)
    total = indexer.size()["total"]
    assert indexer.size() == {"done": 0, "total": total, "entries": 0}
    counts = indexer.index()
    assert counts == indexer.index()
    assert indexer.size() == {"done": total, "total": total, "entries": counts["entries"]}
    assert counts["entries"] > 0


def test_a_cancelled_indexer_leaves_and_reads_the_rest_later() -> None:
    indexer: Any = Indexer(share=5, shares=60)
    host: Any = None  # an indexer asks nothing of its host
    call = RunningCall(host, "c1", "indexer-1", "index")
    call.cancel()
    token = running_call.set(call)
    with pytest.raises(CallCancelled):
        indexer.index()
    running_call.reset(token)
    assert indexer.size()["done"] == 0
    assert indexer.index()["modules"] == indexer.size()["total"]


@pytest.mark.parametrize(
    ("question", "first"),
    [
        (demo.QUESTIONS[0], "tempfile.TemporaryDirectory"),
        (demo.QUESTIONS[1], "subprocess.run"),
        (demo.QUESTIONS[2], "difflib.Differ"),
        ("greatest common divisor", "math.gcd"),
        ("How do I copy a directory tree?", "shutil.copytree"),
    ],
)
def test_the_coordinator_finds_the_right_thing_first(indexers: list[Any], question: str, first: str) -> None:
    found = Coordinator(indexers).reply(question, k=4)
    assert found["answers"][0]["name"] == first
    scores = [answer["score"] for answer in found["answers"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 4
    assert found["searched"] > 4000


def test_the_answers_do_not_depend_on_how_the_library_is_divided() -> None:
    shares = pick(8, 1)  # of an eighth of it, or of the whole
    with ThreadPoolExecutor(1) as pool:
        alone = Beside(Indexer(share=0, shares=shares), pool)
        parts = [Beside(Indexer(share=part * shares, shares=4 * shares), pool) for part in range(4)]
        for indexer in (alone, *parts):
            indexer.index().result(timeout=60)
        for question in demo.QUESTIONS:
            found = Coordinator([alone]).reply(question)
            assert found["answers"]
            assert found == Coordinator(parts).reply(question)


def test_a_question_of_unknown_words_has_no_answers(indexers: list[Any]) -> None:
    assert Coordinator(indexers).reply("qzxv vxzq")["answers"] == []
    assert Coordinator(indexers).reply("")["answers"] == []


def test_an_answer_says_where_the_thing_is_defined(indexers: list[Any]) -> None:
    answer = Coordinator(indexers).reply("How do I escape HTML?")["answers"][0]
    assert answer["name"] == "html.escape"
    assert answer["signature"] == "(s, quote=True)"
    file, _, line = answer["place"].partition(":")
    assert (indexing.LIBRARY / file).read_text(encoding="utf-8").splitlines()[int(line) - 1].startswith("def escape(")


def test_words_meet_in_a_common_form() -> None:
    assert set(indexing.terms("ZipFile")) == {"zipfil", "zip", "fil"}
    for one, other in (("parsing", "parse"), ("files", "file"), ("running", "run"), ("directories", "directory")):
        assert list(indexing.terms(one)) == list(indexing.terms(other))
    assert list(indexing.terms("the class")) == ["class"]


# ---------------------------------------------------------------- the demo


def run_python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_host_that_ends_instead_of_listening_is_told() -> None:
    process = run_python("raise SystemExit(3)")
    with pytest.raises(demo.HostDidNotStart, match="exit code 3"):
        demo.read_ready_line(process)
    demo.stop(process, None)


def test_a_host_that_never_listens_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "START_LIMIT_S", 0.3)
    process = run_python("import threading; threading.Event().wait()")
    with pytest.raises(demo.HostDidNotStart):
        demo.read_ready_line(process)
    demo.stop(process, None)
    assert process.returncode is not None


def test_progress_that_is_not_on_a_terminal_is_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with demo.lines(2) as update:
        for done in range(11):
            update([Progress(done, 10)] * 2)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["25", "50", "75", "100"]


def test_the_demo_answers_its_questions_and_stops_its_host() -> None:
    done = subprocess.run([sys.executable, EXAMPLES / "index" / "demo.py"], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(question in done.stdout for question in demo.QUESTIONS)
    assert done.stdout.index("1. tempfile.TemporaryDirectory") < done.stdout.index("1. subprocess.run(")
    port, pid = re.search(r"localhost:(\d+) \(pid (\d+)\)", done.stdout).groups()  # type: ignore[union-attr]
    assert f"as_server call coordinator reply '\"How do I escape HTML?\"' --port {port}" in done.stdout
    assert not psutil.pid_exists(int(pid))


def test_the_example_on_all_cores_finds_the_same_in_threads_and_in_children() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "all_cores" / "primes.py"), "--numbers", "20000", "--workers", "2"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2262 primes below 20000")
    assert "speed-up on 2 processes" in done.stdout
