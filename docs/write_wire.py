"""Fill in the tables of ``docs/wire.rst`` from the module that defines the protocol. Only the standard library.

The kinds and the flags are read from the table in the module's docstring (the tests of that module hold it against the
code), codes and limits from the numbers and the comments behind them. Nothing is imported: comments are source.

    python docs/write_wire.py [--check]
"""

from __future__ import annotations

import ast
import io
import re
import struct
import sys
import textwrap
import tokenize
from pathlib import Path
from typing import NamedTuple

from pages import DOCS, PACKAGE, fill, settle, table

TYPES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64"}
KIND = re.compile(r" {4,5}(\d+) ([A-Z_]+) +(client|broker) +(.*)")  # a row of the table in the docstring
FRAMES = re.compile(r"(\[[^]]*\]\*?)+")
FLAGS = re.compile(r"flags of ([A-Z]+): (.*?)(?=flags of|codes of)", re.DOTALL)
FLAG = re.compile(r"(\d+) ([A-Z_]+)(?: \(([^)]*)\))?")


class Number(NamedTuple):
    """A name, its value and the comment behind it."""

    name: str
    value: object
    words: str


class Protocol:
    """The module of the messages as it is written."""

    def __init__(self, source: str) -> None:
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        self._comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
        tree = ast.parse(source)
        self.docstring = ast.get_docstring(tree, clean=False) or ""
        self._body = tree.body

    def constants(self) -> list[Number]:
        """What is assigned at the top level."""
        return self._numbers(self._body)

    def members(self, class_name: str) -> list[Number]:
        """What is assigned, or annotated, in a class."""
        [found] = [node for node in self._body if isinstance(node, ast.ClassDef) and node.name == class_name]
        return self._numbers(found.body)

    def header_format(self) -> str:
        """The format of the `struct` that is a header."""
        [text] = [
            ast.literal_eval(node.value.args[0])
            for node in self._body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HEADER"
            if isinstance(node.value, ast.Call)
        ]
        return str(text)

    def _numbers(self, body: list[ast.stmt]) -> list[Number]:
        found = []
        for node in body:
            words = self._comments.get(node.lineno, "")
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found.append(Number(node.targets[0].id, _value(node.value), words))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.append(Number(node.target.id, None, words))
        return found


def _value(node: ast.expr) -> object:
    """The value of a literal or of a calculation with literals, None of anything else."""
    if any(not isinstance(part, (ast.Constant, ast.BinOp, ast.operator)) for part in ast.walk(node)):
        return None
    value: object = eval(compile(ast.Expression(node), "constant", "eval"), {"__builtins__": {}})
    return value


def header(protocol: Protocol) -> str:
    """The table of the header's fields, and the length of all of them."""
    layout = protocol.header_format()
    rows, at = [], 0
    for field, part in zip(protocol.members("Header"), re.findall(r"\d*[a-zA-Z]", layout), strict=True):
        rows.append((str(at), f"``{field.name}``", TYPES.get(part, part.replace("s", " bytes"))))
        at += struct.calcsize(f">{part}")
    return table(("byte", "field", "type"), rows) + f"\n\n{at} bytes in all, ``struct`` format ``{layout}``."


def kinds(protocol: Protocol) -> str:
    """The table of the kinds of messages."""
    rows: list[list[str]] = []
    lines = protocol.docstring.splitlines()
    for line in lines[lines.index(next(filter(KIND.match, lines))) :]:
        found = KIND.match(line)
        if found:
            parts, _, fields = found[4].partition("  ")
            rows.append([found[1], f"``{found[2]}``", found[3], FRAMES.sub(r"``\g<0>``", parts), fields.strip()])
        elif line.strip():
            rows[-1][-1] += " " + line.strip()  # what did not fit into the line above
        else:
            break
    _complete(protocol, "Kind", [row[1] for row in rows])
    return table(("kind", "name", "from", "frames after the header", "fields of the header"), rows)


def flags(protocol: Protocol) -> str:
    """The table of the flags."""
    rows = [
        (number, f"``{name}``", f"``{kind}``", " ".join(words.split()))
        for kind, those in FLAGS.findall(protocol.docstring)
        for number, name, words in FLAG.findall(those)
    ]
    _complete(protocol, "Flag", [row[1] for row in rows])
    return table(("bit", "flag", "of", "what it says"), sorted(rows, key=lambda row: int(row[0])))


def _complete(protocol: Protocol, class_name: str, names: list[str]) -> None:
    """SystemExit if the docstring's table and the class do not have the same names."""
    differ = {f"``{member.name}``" for member in protocol.members(class_name)} ^ set(names)
    if differ:
        raise SystemExit(f"the docstring's table and the class {class_name} differ in {', '.join(sorted(differ))}")


def codes(protocol: Protocol) -> str:
    """The table of the codes."""
    rows = [(str(value), f"``{name}``", words) for name, value, words in protocol.members("Code")]
    return table(("code", "name", "what it says"), rows)


def limits(protocol: Protocol) -> str:
    """The table of the limits: the public numbers at the top level of the module."""
    rows = [
        (f"``{name}``", f"{value:,}", words)
        for name, value, words in protocol.constants()
        if name.isupper() and not name.startswith("_") and isinstance(value, int)
    ]
    return table(("limit", "value", "of what"), rows)


def requests(protocol: Protocol) -> str:
    """The names of the management requests, as one sentence."""
    names = [f"``{value}``" for _, value, _ in protocol.members("Op")]
    return textwrap.fill(f"{', '.join(names[:-1])} and {names[-1]}.", 118)


def module() -> Path:
    """The file that defines the protocol."""
    [found] = [path for path in sorted(PACKAGE.rglob("*.py")) if "\nclass Kind(" in path.read_text(encoding="utf-8")]
    return found


def main() -> int:
    protocol = Protocol(module().read_text(encoding="utf-8"))
    parts = (header, kinds, flags, codes, limits, requests)
    page = DOCS / "wire.rst"
    blocks = {part.__name__: part(protocol) for part in parts}
    return settle("Fill in the tables of docs/wire.rst.", {page: fill(page.read_text(encoding="utf-8"), blocks)})


if __name__ == "__main__":
    sys.exit(main())
