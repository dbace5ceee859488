"""Indexer: an agent that reads a share of the Python standard library and answers questions on it.

Several indexers divide the library among themselves: the one made with ``share=2, shares=8`` reads the
third, eleventh ... largest module. Sources are parsed, not imported; modules written in C, which have no
source, are imported for their docstrings. One *entry* is a documented module, class, function or method;
entries are ranked by BM25, with the words of a name counting more than those of its text.

    $ as_server start --port 7411 --agent-dir examples/index/agents
    $ as_server call indexer-1 search '"read a zip archive"' --port 7411
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import inspect
import math
import re
import sys
import sysconfig
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zmqagents import AgentBase, async_func, concurrent, current_call

LIBRARY = Path(sysconfig.get_path("stdlib"))
LEFT_OUT = {"test", "tests", "idle_test", "_bundled", "site-packages", "dist-packages", "__pycache__"}
OFF_THE_PATH = {"distutils", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}  # read, but seldom what is meant
UNTOUCHED = {"readline"}  # importing it changes the terminal

STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a all an and any are as at be by can do does each few for from give given has have how i if in into is it "
        "its many me my no not of on one or other our over should so some than that the their them then there these "
        "they this to two up use used uses using want was what when where which will with would you your",
    )
)
# BM25: how slowly repeats stop counting, and how much long texts are held back. Both are off the usual
# 1.2 and 0.75, because here a word counts up to eight times by where it stands, and a long text is a careful one.
K1, B = 4.0, 0.4
WEIGHT = {"name": 4.0, "path": 2.0, "summary": 2.0, "text": 1.0}

Entry = dict[str, Any]  # name, kind, signature, summary, place


class Indexer(AgentBase):
    """Reads share number ``share`` (from 0) of ``shares`` equal shares of the standard library."""

    def __init__(self, share: int = 0, shares: int = 1) -> None:
        super().__init__(name=f"indexer {share + 1} of {shares}")
        self.modules = modules_of_library()[share::shares]
        self._entries: list[Entry] = []
        self._lengths: list[float] = []
        self._usual: list[float] = []  # below 1 for what is seldom meant
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._done = 0

    @async_func  # the caller gets an AsyncResult at once, so that eight indexers read at the same time
    def index(self) -> dict[str, int]:
        """Read every module of the share; gives how many modules and entries there are now."""
        call = current_call()
        for name, source in self.modules[self._done :]:
            if call is not None:
                call.check()  # the caller may have cancelled: leave, the rest can be read later
                call.progress(self._done, len(self.modules), f"{len(self._entries):,} entries")
            for entry, words in read(name, source):
                self._add(entry, words)
            self._done += 1
        return {"modules": self._done, "entries": len(self._entries)}

    @concurrent  # answered while `index` runs; any other call waits for its turn
    def size(self) -> dict[str, int]:
        """How much there is: modules read, modules in total, entries found so far."""
        return {"done": self._done, "total": len(self.modules), "entries": len(self._entries)}

    @async_func
    def statistics(self, question: str) -> dict[str, Any]:
        """How common the question's words are here, so that all shares can be ranked by one measure."""
        return self._statistics(question)

    def _statistics(self, question: str) -> dict[str, Any]:
        containing = {term: len(self._postings.get(term, ())) for term in terms_of(question)}
        return {"entries": len(self._entries), "words": sum(self._lengths), "containing": containing}

    @async_func
    def search(self, question: str, k: int = 5, statistics: Mapping[str, Any] | None = None) -> list[Entry]:
        """The ``k`` best entries, each with its ``score``; ``statistics`` of all shares make scores comparable."""
        if statistics is None:
            statistics = self._statistics(question)
        average = statistics["words"] / max(1, statistics["entries"])
        scores: dict[int, float] = defaultdict(float)
        for term in terms_of(question):
            containing = statistics["containing"].get(term, 0)
            rarity = math.log(1 + (statistics["entries"] - containing + 0.5) / (containing + 0.5))
            for number, count in self._postings.get(term, ()):
                held_back = K1 * (1 - B + B * self._lengths[number] / average)
                scores[number] += self._usual[number] * rarity * count * (K1 + 1) / (count + held_back)
        best = sorted(scores, key=lambda number: (-scores[number], number))[:k]
        return [{**self._entries[number], "score": round(scores[number], 2)} for number in best]

    reply = search

    def _add(self, entry: Entry, words: Mapping[str, float]) -> None:
        number = len(self._entries)
        self._entries.append(entry)
        self._lengths.append(sum(words.values()))
        top = entry["name"].partition(".")[0]
        self._usual.append(0.6 if top.startswith("_") or top in OFF_THE_PATH else 1.0)
        for word, weight in words.items():
            self._postings[word].append((number, weight))


# ---------------------------------------------------------------- the library


def modules_of_library() -> list[tuple[str, Path | None]]:
    """Every module of the standard library, the largest first: its dotted name, and its source if it has one."""
    found: list[tuple[int, str, Path | None]] = []
    for top in sys.stdlib_module_names:
        sources = [LIBRARY / f"{top}.py"] if (LIBRARY / f"{top}.py").is_file() else (LIBRARY / top).rglob("*.py")
        count = len(found)
        for source in sources:
            parts = source.relative_to(LIBRARY).with_suffix("").parts
            if not LEFT_OUT.intersection(parts):
                name = ".".join(part for part in parts if part != "__init__")
                found.append((source.stat().st_size, name, source))
        if count == len(found) and not top.startswith("_") and top not in LEFT_OUT | UNTOUCHED and is_compiled(top):
            found.append((0, top, None))
    return [(name, source) for _, name, source in sorted(found, key=lambda item: (-item[0], item[1]))]


def is_compiled(module: str) -> bool:
    """True for a module written in C that this platform has."""
    spec = importlib.util.find_spec(module)
    origin = (spec.origin if spec is not None else None) or ""
    return origin == "built-in" or origin.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))


def read(module: str, source: Path | None) -> Iterator[tuple[Entry, dict[str, float]]]:
    """The documented things of one module, each with its weighted words."""
    shown = public_name(module)
    items = parsed(source) if source is not None else imported(module)
    for kind, path, signature, doc, line in items:
        name = f"{shown}.{path}" if path else shown
        summary = " ".join(doc.strip().partition("\n\n")[0].split())
        place = f"{source.relative_to(LIBRARY).as_posix()}:{line}" if source is not None else "built in"
        entry = {"name": name, "kind": kind, "signature": signature, "summary": summary, "place": place}
        yield entry, words_of(name, summary, doc)


def public_name(module: str) -> str:
    """The name to import by: ``_pydatetime`` is the Python text of ``datetime``."""
    if module == "_collections_abc":
        return "collections.abc"
    public = module.removeprefix("_py")
    return public if public in sys.stdlib_module_names else module


_parsing = threading.Lock()

Item = tuple[str, str, str, str, int]  # kind, path inside the module, signature, docstring, line


def parsed(source: Path) -> Iterator[Item]:
    """The documented public things of a source file, without running it; none if it cannot be read."""
    try:
        data = source.read_bytes()
        with _parsing:  # Python 3.11's parser is not safe in several threads at once (gh-106905)
            tree = ast.parse(data)
    except (OSError, SyntaxError, ValueError):
        return
    if doc := ast.get_docstring(tree):
        yield "module", "", "", doc, 1
    yield from _parsed(tree, "")


def _parsed(parent: ast.AST, path: str) -> Iterator[Item]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.name.startswith("_"):
                continue
            inner = f"{path}{node.name}"
            is_class = isinstance(node, ast.ClassDef)
            if doc := ast.get_docstring(node):
                kind = "class" if is_class else "method" if path else "function"
                signature = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
                yield kind, inner, signature, doc, node.lineno
            if is_class:
                yield from _parsed(node, f"{inner}.")
        elif isinstance(node, (ast.If, ast.Try, ast.With)):  # "if sys.platform == ...:" holds definitions too
            yield from _parsed(node, path)


def imported(module: str) -> Iterator[Item]:
    """The documented public things of a module written in C."""
    try:
        loaded = importlib.import_module(module)
    except Exception:  # some refuse, being about to leave the library
        return
    yield "module", "", "", inspect.getdoc(loaded) or module, 1
    for name, value in sorted(vars(loaded).items()):
        if not name.startswith("_") and callable(value) and (doc := inspect.getdoc(value)):
            kind = "class" if isinstance(value, type) else "function"
            try:
                with _parsing:  # the signature of a function in C is text, which is parsed
                    signature = "" if isinstance(value, type) else str(inspect.signature(value))
            except (TypeError, ValueError):
                signature = ""
            yield kind, name, signature, doc, 1


# ---------------------------------------------------------------- words


def words_of(name: str, summary: str, doc: str) -> dict[str, float]:
    """The words of an entry with how much each counts; the name's last part counts most."""
    path, _, last = name.rpartition(".")
    words: Counter[str] = Counter()
    for part, text in (("name", last), ("path", path), ("summary", summary), ("text", doc)):
        for word in terms(text):
            words[word] += WEIGHT[part]  # type: ignore[assignment]
    return dict(words)


def terms_of(question: str) -> list[str]:
    """The words of a question, each once."""
    return list(dict.fromkeys(terms(question)))


def terms(text: str) -> Iterable[str]:
    """Words in a common form: ``ZipFile`` gives zipfil, zip and fil; ``parsing`` and ``parse`` give pars."""
    for word in re.findall(r"[A-Za-z][A-Za-z0-9]*", text):
        pieces = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", word)
        for piece in {word, *pieces}:
            if len(piece) > 1 and (lower := piece.lower()) not in STOP_WORDS:
                yield stem(lower)


def stem(word: str) -> str:
    """Cut the commonest English endings; crude, and the same for questions and texts."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)]
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "ls":  # running, run
                word = word[:-1]
            break
    return word
