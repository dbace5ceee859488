"""A receiver never imports a module because a peer named it, whatever the name looks like and wherever it stands."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from zmqagents import codec, errors
from zmqagents.codec.classes import types
from zmqagents.codec.forms import Scope

REFUSED = (errors.RemoteProtocolError, errors.SerializationError)
SIDE_EFFECT = "import sys\nsys.modules['evil.was.here'] = sys\n"
CLASS = (
    "import dataclasses, enum\n@dataclasses.dataclass\nclass Thing:\n    a: int = 1\nclass Oops(Exception):\n    pass\n"
)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``good`` is trusted in the tests; every other module here leaves a mark when it is imported."""
    files = {
        "good/__init__.py": CLASS, "good/inner.py": CLASS, "good/__main__.py": SIDE_EFFECT + CLASS,
        "good/sub/__init__.py": CLASS, "good/sub/__main__.py": SIDE_EFFECT + CLASS,
        "goodness/__init__.py": SIDE_EFFECT + CLASS, "good_evil.py": SIDE_EFFECT + CLASS,
        "evil/__init__.py": SIDE_EFFECT + CLASS, "evil/good/__init__.py": SIDE_EFFECT + CLASS,
    }  # fmt: skip
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("good", "goodness", "good_evil", "evil"):
            del sys.modules[name]


def mark(letter: str, *parts: Any) -> Any:
    return [msgpack.ExtType(1, letter.encode()), *parts]


def payloads(name: str) -> list[bytes]:
    """Every form that holds the name of a class."""
    exception = {"type": name, "message": "m", "bases": [name], "cause": {"type": name, "message": "m"},
                 "args": b"\xc1" + msgpack.packb([mark("o", name, {"a": 1})])}  # fmt: skip
    forms = [
        mark("o", name, {"a": 1}), mark("o", name, [], []), [mark("o", name, {}), 1], mark("x", exception),
        mark("p", name, 1), mark("p", name.replace(":", "."), 1), mark("e", name, 1),
        mark("x", {"type": "builtins:ExceptionGroup", "message": "m", "group": [exception]}),
        mark("a", name, [1], "C", b"x"), mark("a", f"ml_dtypes.{name}", [1], "C", b"x"), mark("g", name, b"x"),
        mark("e", "defaultdict", name, {}), mark("p", "pydantic.url", name, "http://a.b"),
        mark("A", "s", "h:1", "agent", name, {}), mark("p", "torch.Tensor", name, [1], False, b"x"),
    ]  # fmt: skip
    return [b"\xc1" + msgpack.packb(form) for form in forms]


def expecting_method(self: Any, one: dict[str, int], other: codec.AgentRef) -> None:
    raise NotImplementedError


SCOPES = {
    "nothing": Scope(), "plain": Scope(plain=True), "expected": Scope(expected=types.expected_by(expecting_method)),
    "trusts good": Scope(trusted=("good",)),
}  # fmt: skip
NAMES = [
    "evil:Thing", "evil.good:Thing", "good_evil:Thing", "goodness:Thing", "goodness.inner:Thing", ".evil:Thing",
    "zmqagents_agents.evil:Thing", "good.__main__:Thing", "good.sub.__main__:Thing", "__main__:Thing", "evil",
    "evil:good.Thing", "good:..evil:Thing", "good/../evil:Thing", "good\0.evil:Thing", " good:Thing", "Good:Thing",
    ".good:Thing", "..good:Thing", "good..inner:Thing", "evil:", ":Thing", ":", "", "antigravity:x", "this:Thing",
    "lib2to3:x", "idlelib.idle:Thing", "evil.was.here:Thing", "os.path:Thing", "builtins:eval", "os:system",
    "good.inner:dataclasses.evil.Thing", "good:dataclasses", "good.inner.evil:Thing",
]  # fmt: skip


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", NAMES)
def test_no_module_is_imported_by_a_name_from_a_peer(name: str, scope: str, packages: None) -> None:
    if "good" in scope:
        importlib.import_module("good.inner")
        importlib.import_module("good.sub")
    before = set(sys.modules)
    for payload in payloads(name):
        for read in (codec.decode, codec.decode_call):
            try:
                value = read(payload, scope=SCOPES[scope], resolve=lambda ref: ref)
            except REFUSED:
                continue
            assert "Thing" not in type(value).__name__
    new = {each.partition(".")[0] for each in set(sys.modules) - before} - sys.stdlib_module_names
    assert not new & {"good", "good_evil", "goodness", "evil", "__main__"} - {"good" if "good" in scope else ""}
    assert not {"antigravity", "this", "idlelib.idle", "lib2to3"} & (set(sys.modules) - before)
    error: dict[str, Any] = {"type": name, "message": "m", "bases": [name], "cause": {"type": name, "message": "m"}}
    assert isinstance(codec.decode_error(error, from_agent=False, scope=SCOPES[scope]), Exception)
    assert "evil.was.here" not in sys.modules


def test_a_class_of_a_trusted_package_is_imported_and_nothing_that_it_merely_holds(packages: None) -> None:
    scope = SCOPES["trusts good"]
    thing = codec.decode(payloads("good.inner:Thing")[0], scope=scope)
    assert (type(thing).__module__, thing.a) == ("good.inner", 1)
    error = codec.decode_error({"type": "good.sub:Oops", "message": "m"}, from_agent=False, scope=scope)
    assert type(error).__name__ == "Oops"
    for name in (
        "good:dataclasses.Field",
        "good.inner:enum.Enum",
        "good.inner:dataclasses",
        "good.inner:Thing.__init__",
    ):
        with pytest.raises(REFUSED):
            codec.decode(payloads(name)[0], scope=scope)


def test_a_trusted_package_that_is_not_there_is_an_error_with_its_name() -> None:
    with pytest.raises(errors.SerializationError, match="the module of the trusted type nowhere_at_all:X cannot be"):
        codec.decode(payloads("nowhere_at_all:X")[0], scope=Scope(trusted=("nowhere_at_all",)))


def test_attributes_of_a_module_are_read_without_running_its_getattr(packages: None, tmp_path: Path) -> None:
    (tmp_path / "good" / "lazy.py").write_text("def __getattr__(name):\n" + "    import evil\n    return evil.Thing\n")
    importlib.invalidate_caches()
    with pytest.raises(REFUSED):
        codec.decode(payloads("good.lazy:Thing")[0], scope=SCOPES["trusts good"])
    assert "evil" not in sys.modules


@pytest.mark.program
def test_a_fresh_process_imports_for_a_value_only_what_is_on_the_fixed_list() -> None:
    script = """
import sys
from zmqagents import codec
from zmqagents.errors import RemoteProtocolError, SerializationError
before = set(sys.modules)
for line in sys.stdin:
    try:
        codec.decode(bytes.fromhex(line))
    except (RemoteProtocolError, SerializationError):
        pass
new = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(name for name in new if name in ("evil", "torch", "pydantic", "pydantic_core", "attr", "antigravity")))
"""
    names = ["antigravity:x", "torch:Tensor", "torch.Tensor", "pydantic.url", "pydantic:BaseModel", "attr:x", "this:x"]
    lines = "\n".join(payload.hex() for name in names for payload in payloads(name))
    done = subprocess.run([sys.executable, "-c", script], input=lines, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
