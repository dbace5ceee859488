"""Agent classes from files: which are found, under what names, and how a bad file is told."""

from __future__ import annotations

import importlib
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from zmqagents.agents.base import AgentBase
from zmqagents.agents.loader import PACKAGE, load_agents_from_dir, load_custom_class_from_file
from zmqagents.agents.spec import is_agent_class
from zmqagents.errors import LoadError

READER = """
    from zmqagents.agents.base import AgentBase

    class Reader(AgentBase):
        def reply(self, question):
            return f"read {question}"
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def names(classes: list[type]) -> list[str]:
    return [cls.__name__ for cls in classes]


# ---------------------------------------------------------------- which classes


def test_the_classes_of_a_file_come_in_the_order_of_their_definition(tmp_path: Path) -> None:
    file = write(
        tmp_path / "several.py",
        """
        from zmqagents import AgentBase, agent

        class Zebra(AgentBase):
            pass

        @agent
        class Plain:
            pass

        class Ant(Zebra):
            pass
        """,
    )
    assert names(load_custom_class_from_file(file)) == ["Zebra", "Plain", "Ant"]


def test_a_loaded_class_works(tmp_path: Path) -> None:
    (reader,) = load_custom_class_from_file(write(tmp_path / "reader.py", READER))
    assert issubclass(reader, AgentBase)
    assert reader().reply("me") == "read me"


def test_imported_bases_and_helpers_are_not_offered(tmp_path: Path) -> None:
    # The earlier system registered every type that an agent file imported.
    write(tmp_path / "base.py", READER)
    file = write(
        tmp_path / "child.py",
        """
        from collections import Counter
        from pathlib import Path
        from zmqagents.agents.base import AgentBase
        from .base import Reader

        class Helper:
            pass

        class Child(Reader):
            pass
        """,
    )
    assert names(load_custom_class_from_file(file)) == ["Child"]


def test_a_subclass_of_a_marked_class_is_offered_only_when_marked_itself(tmp_path: Path) -> None:
    file = write(
        tmp_path / "marked.py",
        """
        from zmqagents import agent

        @agent
        class Marked:
            pass

        class Unmarked(Marked):
            pass
        """,
    )
    assert names(load_custom_class_from_file(file)) == ["Marked"]


def test_an_alias_counts_once_and_a_private_class_not_at_all(tmp_path: Path) -> None:
    file = write(
        tmp_path / "alias.py",
        """
        from zmqagents.agents.base import AgentBase

        class _Common(AgentBase):
            pass

        class Reader(_Common):
            pass

        Lector = Reader
        """,
    )
    assert names(load_custom_class_from_file(file)) == ["Reader"]


def test_a_file_without_agents_gives_an_empty_list(tmp_path: Path) -> None:
    assert load_custom_class_from_file(write(tmp_path / "constants.py", "LIMIT = 3")) == []


# ---------------------------------------------------------------- module names


def test_a_class_from_a_file_pickles_by_reference(tmp_path: Path) -> None:
    # The earlier system's modules were not in sys.modules, so pickle could not find the class.
    (reader,) = load_custom_class_from_file(write(tmp_path / "reader.py", READER))
    assert pickle.loads(pickle.dumps(reader)) is reader
    assert importlib.import_module(reader.__module__) is sys.modules[reader.__module__]


def test_a_module_name_has_no_path_separators(tmp_path: Path) -> None:
    (reader,) = load_custom_class_from_file(write(tmp_path / "odd dir!" / "my-agent.py", READER))
    assert reader.__module__.startswith(f"{PACKAGE}.odd_dir__")
    assert "/" not in reader.__module__
    assert os.sep not in reader.__module__


def test_an_agent_file_cannot_shadow_a_real_module(tmp_path: Path) -> None:
    (reader,) = load_custom_class_from_file(write(tmp_path / "json.py", READER))
    assert reader.__module__ != "json"
    assert sys.modules["json"] is json
    assert importlib.import_module("json").dumps(1) == "1"


def test_loading_leaves_sys_path_alone(tmp_path: Path) -> None:
    before = list(sys.path)
    load_agents_from_dir(write(tmp_path / "reader.py", READER).parent)
    assert sys.path == before


def test_a_file_runs_once_and_gives_the_same_classes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = tmp_path / "count"
    file = write(
        tmp_path / "agents" / "once.py",
        READER
        + f"""
    with open({str(count)!r}, "a") as file:
        file.write("x")
    """,
    )
    first = load_custom_class_from_file(file)
    link = tmp_path / "link.py"
    link.symlink_to(file)
    monkeypatch.chdir(tmp_path)
    assert load_custom_class_from_file("agents/once.py") == first
    assert load_custom_class_from_file(link) == first
    assert load_agents_from_dir("agents") == first
    assert count.read_text() == "x"


def test_two_threads_that_load_one_file_get_the_same_class(tmp_path: Path) -> None:
    file = write(tmp_path / "slow.py", "import time; time.sleep(0.05)\n" + textwrap.dedent(READER))
    found: list[type] = []
    threads = [threading.Thread(target=lambda: found.extend(load_custom_class_from_file(file))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_equal_file_names_in_two_directories_are_two_modules(tmp_path: Path) -> None:
    (one,) = load_custom_class_from_file(write(tmp_path / "one" / "reader.py", READER))
    (two,) = load_custom_class_from_file(write(tmp_path / "two" / "reader.py", READER))
    assert one is not two
    assert one.__module__ != two.__module__


# ---------------------------------------------------------------- relative imports


def test_neighbours_are_imported_once_for_all_files(tmp_path: Path) -> None:
    write(tmp_path / "shared.py", "TOKEN = object()")
    for name in ("A", "B"):
        write(
            tmp_path / f"{name.lower()}.py",
            f"""
            from zmqagents.agents.base import AgentBase
            from .shared import TOKEN

            class {name}(AgentBase):
                token = TOKEN
            """,
        )
    first, second = load_agents_from_dir(tmp_path)
    assert vars(first)["token"] is vars(second)["token"]


def test_a_sub_package_is_one_module_whether_imported_or_loaded(tmp_path: Path) -> None:
    write(tmp_path / "parts" / "__init__.py", "")
    write(tmp_path / "parts" / "reader.py", READER)
    write(
        tmp_path / "main.py",
        """
        from zmqagents.agents.base import AgentBase
        from .parts.reader import Reader

        class Main(AgentBase):
            uses = Reader
        """,
    )
    classes = load_agents_from_dir(tmp_path)
    assert names(classes) == ["Main", "Reader"]
    assert vars(classes[0])["uses"] is classes[1]


def test_a_file_in_a_package_reaches_the_package_above(tmp_path: Path) -> None:
    write(tmp_path / "top" / "__init__.py", "")
    write(tmp_path / "top" / "settings.py", "WORD = 'up'")
    write(tmp_path / "top" / "agents" / "__init__.py", "")
    file = write(
        tmp_path / "top" / "agents" / "climber.py",
        """
        from zmqagents.agents.base import AgentBase
        from ..settings import WORD

        class Climber(AgentBase):
            word = WORD
        """,
    )
    (climber,) = load_custom_class_from_file(file)
    assert vars(climber)["word"] == "up"


# ---------------------------------------------------------------- directories


def test_a_directory_is_read_with_its_sub_directories_in_a_fixed_order(tmp_path: Path) -> None:
    for place in ("b.py", "a.py", "sub/c.py", "sub/deep/d.py", ".hidden.py", ".git/e.py", "__pycache__/f.py"):
        name = "Agent" + Path(place).stem.strip(".").upper()
        write(tmp_path / place, f"from zmqagents.agents.base import AgentBase\nclass {name}(AgentBase): pass\n")
    write(tmp_path / "notes.txt", "not python")
    write(tmp_path / "__main__.py", "raise SystemExit('a program')")
    assert names(load_agents_from_dir(tmp_path)) == ["AgentA", "AgentB", "AgentC", "AgentD"]


def test_a_directory_link_that_leads_back_ends(tmp_path: Path) -> None:
    write(tmp_path / "reader.py", READER)
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert names(load_agents_from_dir(tmp_path)) == ["Reader"]


def test_two_classes_of_one_name_are_an_error_naming_both_files(tmp_path: Path) -> None:
    # The earlier system took the first one without a word.
    one, two = write(tmp_path / "one.py", READER), write(tmp_path / "sub" / "two.py", READER)
    with pytest.raises(LoadError) as caught:
        load_agents_from_dir(tmp_path)
    assert str(caught.value) == f"agent class Reader is defined in {one} and in {two}; rename one of them"


def test_two_classes_of_one_name_in_one_file_are_an_error_too(tmp_path: Path) -> None:
    file = write(
        tmp_path / "made.py",
        """
        from zmqagents.agents.base import AgentBase

        def make():
            class Made(AgentBase):
                pass
            return Made

        First, Second = make(), make()
        """,
    )
    with pytest.raises(LoadError, match=f"Made is defined twice in {file}"):
        load_agents_from_dir(tmp_path)


def test_an_empty_directory_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_agents_from_dir(tmp_path) == []
    assert caplog.messages == [f"agent directory '{tmp_path}' defines no agent class"]


# ---------------------------------------------------------------- bad files

BAD = {
    "syntax.py": ("x = (\n", 1, "SyntaxError: '(' was never closed"),
    "name.py": ("import os\n\nprint(undefined)\n", 3, "NameError: name 'undefined' is not defined"),
    "exits.py": ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3 (the file called sys.exit()"),
    "odd.py": ("class Stop(BaseException): pass\nraise Stop('two\\nlines')\n", 2, "Stop: two lines"),
    "mute.py": ("class E(Exception):\n def __str__(self): raise OSError\nraise E\n", 3, "E: <message of E"),
    "absent.py": ("\nimport no_such_package_xyz\n", 2, "ModuleNotFoundError: No module named 'no_such_package_xyz'"),
    "deep.py": ("def f():\n raise KeyError('k')\nf()\n", 2, "KeyError: 'k'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_with_place_and_error(tmp_path: Path, name: str) -> None:
    text, line, message = BAD[name]
    file = write(tmp_path / name, text)
    with pytest.raises(LoadError) as caught:
        load_custom_class_from_file(file)
    assert str(caught.value).startswith(f"{file}:{line}: {message}")
    assert "\n" not in str(caught.value)
    assert caught.value.path == str(file)
    assert caught.value.__cause__ is not None


def test_bytes_that_are_no_source_are_told(tmp_path: Path) -> None:
    file = tmp_path / "binary.py"
    file.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(LoadError, match=r"binary\.py.*Error: "):
        load_custom_class_from_file(file)


def test_an_error_in_an_imported_neighbour_names_the_import_and_the_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "helper.py", "def broken(:\n")
    file = write(tmp_path / "user.py", "\nfrom . import helper\n")
    with pytest.raises(LoadError) as caught:
        load_custom_class_from_file(file)
    assert str(caught.value) == f"{file}:2: SyntaxError: invalid syntax (helper.py, line 1)"


def test_an_absolute_import_of_a_neighbour_is_told_the_way(tmp_path: Path) -> None:
    write(tmp_path / "my_helper_xyz.py", "")
    file = write(tmp_path / "user.py", "import my_helper_xyz\n")
    with pytest.raises(LoadError, match=r"write 'from \. import my_helper_xyz'"):
        load_custom_class_from_file(file)


def test_a_bad_file_does_not_hide_the_others_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    write(tmp_path / "reader.py", READER)
    bad = write(tmp_path / "bad.py", "1 / 0\n")
    assert names(load_agents_from_dir(tmp_path)) == ["Reader"]
    assert caplog.messages == [f"agent file left out: {bad}:1: ZeroDivisionError: division by zero"]


def test_failures_are_collected_instead_of_logged_when_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "reader.py", READER)
    for name in ("a.py", "b.py"):
        write(tmp_path / name, "1 / 0\n")
    failures: list[LoadError] = []
    assert names(load_agents_from_dir(tmp_path, failures=failures)) == ["Reader"]
    assert [Path(exc.path or "").name for exc in failures] == ["a.py", "b.py"]
    assert isinstance(failures[0].__cause__, ZeroDivisionError)
    assert caplog.messages == []


def test_strict_makes_one_bad_file_an_error(tmp_path: Path) -> None:
    write(tmp_path / "reader.py", READER)
    bad = write(tmp_path / "bad.py", "1 / 0\n")
    with pytest.raises(LoadError) as caught:
        load_agents_from_dir(tmp_path, strict=True)
    assert str(caught.value) == (
        f"agent directory '{tmp_path}': a file cannot be loaded; correct or remove: "
        f"{bad}:1: ZeroDivisionError: division by zero"
    )


def test_a_directory_of_bad_files_only_is_one_line_naming_each(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        write(tmp_path / name, "1 / 0\n")
    with pytest.raises(LoadError, match=r"2 files cannot be loaded; .*a\.py:1: .*; .*b\.py:1: ") as caught:
        load_agents_from_dir(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_repaired_file_loads_in_the_same_process(tmp_path: Path) -> None:
    file = write(tmp_path / "later.py", "raise ValueError('not yet')\n")
    with pytest.raises(LoadError, match="not yet"):
        load_custom_class_from_file(file)
    write(file, READER)
    assert names(load_custom_class_from_file(file)) == ["Reader"]


def test_a_keyboard_interrupt_passes(tmp_path: Path) -> None:
    file = write(tmp_path / "interrupted.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_custom_class_from_file(file)


@pytest.mark.parametrize(("name", "message"), [("agent.v2.py", "without a further dot"), ("agent.txt", "<name>.py")])
def test_a_name_that_python_cannot_import_is_told(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        load_custom_class_from_file(write(tmp_path / name, READER))


def test_a_file_hidden_by_a_package_of_its_name_is_told(tmp_path: Path) -> None:
    write(tmp_path / "twin" / "__init__.py", "")
    file = write(tmp_path / "twin.py", READER)
    with pytest.raises(LoadError, match=r"Python prefers .*twin/__init__\.py for this name"):
        load_custom_class_from_file(file)


def test_missing_things_are_named_with_a_remedy(tmp_path: Path) -> None:
    gone, file = tmp_path / "gone", write(tmp_path / "reader.py", READER)
    with pytest.raises(LoadError, match=r"agent directory '.*gone' does not exist; check the path"):
        load_agents_from_dir(gone)
    with pytest.raises(LoadError, match=r"agent directory '.*reader\.py' is not a directory"):
        load_agents_from_dir(file)
    with pytest.raises(LoadError, match=r"agent file '.*gone' does not exist; check the path"):
        load_custom_class_from_file(gone)
    with pytest.raises(LoadError, match=r"agent file '.*' is not a file"):
        load_custom_class_from_file(tmp_path)


# ---------------------------------------------------------------- a fresh process


@pytest.mark.program
def test_a_directory_loads_in_a_fresh_interpreter_with_the_same_names(tmp_path: Path) -> None:
    write(tmp_path / "reader.py", READER)
    (here,) = load_agents_from_dir(tmp_path)
    code = (
        "import sys; from zmqagents.agents.loader import load_agents_from_dir; "
        "print(load_agents_from_dir(sys.argv[1])[0].__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here.__module__
    assert is_agent_class(here)
