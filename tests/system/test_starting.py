"""How a host is started: classes named in the shell, a settings file, variables of the environment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts import ROOT, environment, eventually
from zmqagents import RpcClient
from zmqagents.agents.loader import load_class
from zmqagents.cli.config_file import read_config
from zmqagents.errors import ConfigError, LoadError, did_you_mean

pytestmark = pytest.mark.program

SHOP = '''
from prices import PRICE

class Inventory:
    """Counts things."""

    def __init__(self, limit: int = 1, names: tuple = ()) -> None:
        self.limit, self.names = limit, names

    def look(self) -> list:
        return [self.limit, list(self.names), PRICE]
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with a module of plain classes and one that it imports."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "prices.py").write_text("PRICE = 5\n")
    return tmp_path


def shell(*words: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    given = environment(PYTHONPATH=str(ROOT), PYTHONSAFEPATH="1", **more)
    command = [sys.executable, "-m", "zmqagents", *words]
    return subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def host(*words: str, cwd: Path, **more: str) -> Iterator[dict[str, Any]]:
    """A host that runs meanwhile; what it says of itself. Python itself puts no directory on the path (3.11 on)."""
    given = environment(PYTHONPATH=str(ROOT), PYTHONSAFEPATH="1", **more)
    command = [sys.executable, "-m", "zmqagents", "start", "--json", *words]
    with subprocess.Popen(
        command, cwd=cwd, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield json.loads(line or "null") or {"stderr": process.communicate()[1]}
        finally:
            process.terminate()
            process.communicate(timeout=30)


def test_a_plain_class_of_the_working_directory_is_hosted_by_its_name(project: Path) -> None:
    with host("shop:Inventory", cwd=project) as said, RpcClient(said["host"], said["port"]) as client:
        assert client.create_agent("Inventory", limit=2).look() == [2, [], 5]
        with pytest.raises(LookupError, match="knows no agent class 'PRICE'; it knows: Inventory"):
            client.create_agent("PRICE")


@pytest.mark.parametrize("more", [[], ["--restart"], ["--isolation", "pool"]], ids=["alone", "restart", "children"])
def test_an_agent_is_made_with_literal_arguments(project: Path, more: list[str]) -> None:
    declared = "inv=shop:Inventory(limit=3, names=('a', 'b'))"
    with host("--agent", declared, *more, cwd=project) as said, RpcClient(said["host"], said["port"]) as client:
        assert client.get_agent("inv").look() == [3, ["a", "b"], 5]


@pytest.mark.parametrize("more", [[], ["--restart"], ["--isolation", "pool"]], ids=["alone", "restart", "children"])
def test_a_function_makes_an_agent_and_an_object_is_one(project: Path, more: list[str]) -> None:
    (project / "flows.py").write_text(
        "import functools\nfrom shop import Inventory\n\n"
        "def made(limit: int) -> Inventory:\n    return Inventory(limit)\n\n"
        "ready = Inventory(7)\npartial = functools.partial(made, 8)\n"
    )
    words = ["flows:made", "--agent", "m=flows:made(limit=3)", "--agent", "r=flows:ready", "--agent", "p=flows:partial"]
    with host(*words, *more, cwd=project) as said, RpcClient(said["host"], said["port"]) as client:
        assert [client.get_agent(each).look()[0] for each in "mrp"] == [3, 7, 8]
        assert client.create_agent("made", 4).look()[0] == 4


def test_modules_are_imported_from_the_app_dir_by_agent_files_too(project: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    agents = elsewhere / "agents"
    agents.mkdir()
    (agents / "keeper.py").write_text("from shop import Inventory\nfrom zmqagents import agent\n\n"
                                      "@agent\nclass Keeper(Inventory):\n    pass\n")  # fmt: skip
    with (
        host("--app-dir", str(project), "--agent-dir", "agents", cwd=elsewhere) as said,
        RpcClient(said["host"], said["port"]) as client,
    ):
        assert client.create_agent("Keeper").look() == [1, [], 5]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="`python -m` itself imports from the working directory")
def test_a_directory_that_others_can_write_is_not_imported_from(project: Path) -> None:
    project.chmod(0o777)
    refused = shell("start", "shop:Inventory", cwd=project)
    project.chmod(0o700)
    assert refused.returncode == 2
    assert "there is no module 'shop' in" in refused.stderr


WRONG = [
    (["shop:Inventry"], "shop.py has no class 'Inventry': it has Inventory; did you mean 'Inventory'?"),
    (["shp:Inventory"], "there is no module 'shp' in "),
    (["shp:Inventory"], "; did you mean 'shop'?"),
    (["shop"], "'shop' is not of the form module:Class"),
    (["--agent", "a=shop:Inventory(3)"], "are not of the form (name=value, ...) with literals as values"),
    (["--agent", "a=shop:Inventory(limit=open('x'))"], "with literals as values"),
    (["--agent", "a=shop:Inventory(limt=3)"], "unexpected keyword argument 'limt'"),
    (["--app-dir", "nowhere", "shop:Inventory"], "--app-dir: 'nowhere' is not a directory"),
    (["broken:Thing"], "broken: ZeroDivisionError: division by zero"),
]


@pytest.mark.parametrize(("words", "text"), WRONG)
def test_what_cannot_be_started_is_named_in_the_last_line(project: Path, words: list[str], text: str) -> None:
    (project / "broken.py").write_text("1 / 0\n")
    refused = shell("start", *words, cwd=project)
    assert refused.returncode in (2, 3)
    assert text in refused.stderr.splitlines()[-1]  # before it the log may tell of an agent's own error
    assert "Traceback" not in refused.stderr


def test_a_directory_of_undecorated_classes_names_them_and_the_remedy(project: Path) -> None:
    agents = project / "agents"
    agents.mkdir()
    (agents / "plain.py").write_text("class Plain:\n    pass\n")
    with host("--agent-dir", "agents", cwd=project, PYTHONUNBUFFERED="1") as said:
        assert said["port"]
    ended = shell("start", "--agent-dir", "agents", "--agent", "p=Plain", cwd=project)
    assert (
        "Plain in it is not marked as one; put @agent on it, or name it at the start: as_server start" in ended.stderr
    )


def test_the_settings_file_gives_options_and_what_is_typed_or_in_the_environment_wins(project: Path) -> None:
    (project / "zmqagents.toml").write_text(
        "[start]\nserver_id = 'told'\ncapacity = 7\nmax-message-mb = 3\nlocal_mode = true\n"
        "agent = {inv = 'shop:Inventory(limit=9)'}\n[client]\nserver_id = 'told'\n"
    )
    with host(cwd=project, AS_SERVER_CAPACITY="8") as said:
        assert said["server_id"] == "told"
        status = json.loads(shell("status", "--json", cwd=project).stdout)
        settings = status["settings"]
        assert (settings["capacity"], settings["max_message_bytes"], settings["local_mode"]) == (8, 3 << 20, True)
        assert json.loads(shell("call", "inv", "look", "--json", cwd=project).stdout) == [9, [], 5]
    report = json.loads(shell("doctor", "--json", cwd=project, AS_SERVER_CAPACITY="8").stdout)["settings"]
    assert report["server_id"] == {"value": "told", "origin": "zmqagents.toml"}
    assert report["capacity"]["origin"] == "AS_SERVER_CAPACITY"
    assert report["port"]["origin"] == "default"
    assert report["[start] agent"] == {"value": {"inv": "shop:Inventory(limit=9)"}, "origin": "zmqagents.toml"}
    assert report["[client] server_id"] == {"value": "told", "origin": "zmqagents.toml"}


WRONG_FILES = [
    ("[start]\nprot = 3", "[start] has no setting 'prot'; did you mean 'port'?"),
    ("[strat]\nport = 3", "'strat' is not a section: there are [start] and [client]"),
    ("[start\n", "is no TOML: "),
    ("[start]\nport = 'x'", "Invalid value for 'zmqagents.toml: port': 'x' is not a valid integer"),
    ("[start]\nport = 70000", "zmqagents.toml: port must be a whole number from 0 (any free port) to 65535"),
]


@pytest.mark.parametrize(("text", "words"), WRONG_FILES)
def test_a_wrong_settings_file_is_named_with_the_setting(project: Path, text: str, words: str) -> None:
    (project / "zmqagents.toml").write_text(text)
    refused = shell("start", cwd=project)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "zmqagents.toml" in refused.stderr
    assert words in refused.stderr


def test_a_file_that_is_missing_is_refused(project: Path) -> None:
    missing = shell("start", "--config", "other.toml", cwd=project)
    assert (missing.returncode, "other.toml cannot be read: No such file" in missing.stderr) == (2, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused_unless_it_is_named(project: Path) -> None:
    (project / "zmqagents.toml").write_text("[client]\n")
    os.chown(project / "zmqagents.toml", 12345, -1)
    refused = shell("status", cwd=project)
    assert "belongs to user 12345: say --config zmqagents.toml if it is meant all the same" in refused.stderr
    named = shell("status", "--config", "zmqagents.toml", cwd=project)
    assert named.returncode == 4
    (project / "zmqagents.toml").rename(project / "mine.toml")
    os.chown(project / "mine.toml", os.geteuid(), -1)
    (project / "zmqagents.toml").symlink_to("mine.toml")  # paths in it would be those beside the link
    os.chown(project / "zmqagents.toml", 12345, -1, follow_symlinks=False)
    assert "belongs to user 12345" in shell("status", cwd=project).stderr


def test_an_unknown_variable_is_named_with_the_nearest_option(project: Path) -> None:
    ended = shell("stop", cwd=project, AS_SERVER_PROT="1", AS_SERVER_PORT="1", AS_SERVER_XYZZY="")
    lines = ended.stderr.splitlines()
    assert lines[0] == "warning: AS_SERVER_PROT is set and is no option of as_server; did you mean 'AS_SERVER_PORT'?"
    assert lines[1] == "warning: AS_SERVER_XYZZY is set and is no option of as_server"


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "zmqagents.toml").write_text("[start]\nagent_dir = 'agents'\n")
    assert read_config(tmp_path / "zmqagents.toml") == {"start": {"agent_dir": "agents"}}
    (tmp_path / "agents").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = str(tmp_path / "zmqagents.toml")
    report = json.loads(shell("doctor", "--json", "--config", config, cwd=elsewhere).stdout)
    assert report["settings"]["agent_dir"]["value"] == str(tmp_path / "agents")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(elsewhere)


def test_a_class_is_loaded_by_module_and_name() -> None:
    assert load_class("collections:OrderedDict").__name__ == "OrderedDict"
    with pytest.raises(LoadError, match=r"has no class 'OrderdDict': .*did you mean 'OrderedDict'\?"):
        load_class("collections:OrderdDict")


def test_only_a_near_name_is_suggested() -> None:
    assert did_you_mean("laod", ["load", "save"]) == "; did you mean 'load'?"
    assert did_you_mean("xyz", ["load", "save"]) == ""


def value_of(client: RpcClient) -> Any:
    try:
        return client.get_agent("inv").look(timeout=5)
    except (ConnectionError, LookupError, TimeoutError) as exc:  # while the host is started anew
        return exc


def test_a_changed_file_starts_the_host_anew_and_its_clients_go_on(project: Path) -> None:
    words = ["--reload", "--agent", "inv=shop:Inventory(limit=3)"]
    with host(*words, cwd=project, PYTHONDONTWRITEBYTECODE="1") as said, RpcClient("localhost", said["port"]) as client:
        assert value_of(client) == [3, [], 5]
        (project / "prices.py").write_text("PRICE = 60\n")
        assert eventually(lambda: value_of(client) == [3, [], 60], 30)
        (project / "prices.py").write_text("PRICE = \n")  # cannot be loaded: the next change is waited for
        assert eventually(lambda: not client.is_alive(), 30)
        (project / "prices.py").write_text("PRICE = 700\n")
        assert eventually(lambda: value_of(client) == [3, [], 700], 30)
        assert client.get_server_info()["server_id"] == said["server_id"]
