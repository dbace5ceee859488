"""What packaging/ has for containers: well formed, agreeing with itself, and understood by this version."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from hosts import ROOT
from image import DOCKERFILE, stages
from zmqagents import cli

PACKAGING = ROOT / "packaging"
BASE = PACKAGING / "kubernetes" / "base"
OLDEST, NEWEST = "1.29", "1.34"  # the first one has init containers that go on
LABELS = {"app.kubernetes.io/name": "zmqagents", "app.kubernetes.io/instance": "shop"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def manifests() -> dict[str, dict[str, Any]]:
    """The objects of the base, by their kinds."""
    names = documents(BASE / "kustomization.yaml")[0]["resources"]
    return {document["kind"]: document for name in names for document in documents(BASE / name)}


def compose() -> dict[str, Any]:
    [document] = documents(PACKAGING / "compose.yaml")
    return document


# ---------------------------------------------------------------- commands


def understood(words: list[str]) -> dict[str, Any]:
    """The parameters of a command of as_server, which `cli` has to understand."""
    command: click.Command = cli.shell
    context = click.Context(command, info_name="as_server")
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"as_server has no verb {name!r}"
        command, context = found, click.Context(found, parent=context, info_name=name)
    parser = command.make_parser(context)
    given, rest, _ = parser.parse_args(list(words))
    unknown = [word for word in rest if word.startswith("-")]
    assert not unknown
    return given


def variables() -> set[str]:
    """All that options read."""

    def of(command: click.Command) -> Iterator[str]:
        for param in command.params:
            yield str(param.envvar)
        for inner in command.commands.values() if isinstance(command, click.Group) else ():
            yield from of(inner)

    return set(of(cli.shell)) | {"ZMQAGENTS_KEYS", "ZMQAGENTS_RUNTIME"}


def containers() -> list[dict[str, Any]]:
    spec = manifests()["Deployment"]["spec"]["template"]["spec"]
    return [*spec["initContainers"], *spec["containers"]]


def commands() -> list[list[str]]:
    """Each command of as_server that a file of packaging/ has, without its first word."""
    found = [list(container["args"]) for container in containers()]
    for container in containers():
        probes = [container[name] for name in container if name.endswith("Probe")]
        found += [probe["exec"]["command"][1:] for probe in probes]
    found += [service["command"] for service in compose()["services"].values() if service["image"] == "zmqagents"]
    instructions = dict(instruction for stage in stages() for instruction in stage)
    found.append(json.loads(instructions["CMD"]))
    found.append(json.loads(instructions["HEALTHCHECK"].partition("CMD ")[2])[1:])
    return found


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words))
def test_each_command_is_one_of_as_server_with_its_options(words: list[str]) -> None:
    understood(words)


def test_a_command_that_as_server_does_not_have_would_be_found() -> None:
    with pytest.raises(AssertionError, match="no verb 'serve'"):
        understood(["serve"])
    with pytest.raises(click.NoSuchOption):
        understood(["start", "--clustre", "shop"])


@pytest.mark.parametrize("page", ["cluster.rst", "kubernetes.rst"])
def test_each_command_of_a_page_is_one_of_as_server_and_names_what_is_there(page: str) -> None:
    """Their other commands are those of an engine that is not here."""
    text = (ROOT / "docs" / "howto" / page).read_text(encoding="utf-8")
    [block] = re.findall(r"code-block:: sh\n\n((?:    .*\n)+)", text)
    found = [shlex.split(line.partition("$ ")[2] or line, comments=True) for line in block.splitlines()]
    for words in found:
        if words[0] == "as_server":
            understood(words[1:])
        for word in words:
            assert not word.startswith("packaging/") or (ROOT / word).exists(), word
    assert len([words for words in found if words[0] == "as_server"]) >= 1


def test_each_variable_is_one_that_is_read() -> None:
    named = {variable["name"] for container in containers() for variable in container.get("env", ())}
    for service in compose()["services"].values():
        named |= set(service.get("environment", ()))
    named |= set(re.findall(r"\b(?:AS_SERVER|ZMQAGENTS)_\w+(?==)", DOCKERFILE.read_text(encoding="utf-8")))
    assert len(named) >= 6
    assert named <= variables()


# ---------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_each_object_fits_the_schema_of_kubernetes(version: str) -> None:
    for document in manifests().values():
        kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    document = manifests()["Deployment"]
    document["spec"]["template"]["spec"]["terminationGracePeriod"] = 75
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, OLDEST, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
@pytest.mark.parametrize("folder", ["base", "example"])
def test_kustomize_gives_the_same_objects(folder: str) -> None:
    command = ["kubectl", "kustomize", str(PACKAGING / "kubernetes" / folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    made = {document["kind"]: document for document in yaml.safe_load_all(result.stdout)}
    assert made.keys() == manifests().keys()
    for document in made.values():
        kubernetes_validate.validate(document, OLDEST, strict=True)
        assert LABELS.items() <= document["metadata"]["labels"].items()
    clients = made["NetworkPolicy"]["spec"]["ingress"][0]["from"][1]["podSelector"]["matchLabels"]
    assert clients == {"zmqagents-client": "true"}, "clients would need the labels of hosts"
    assert LABELS.items() <= made["Deployment"]["spec"]["template"]["metadata"]["labels"].items()


def test_all_selectors_find_the_hosts() -> None:
    found = manifests()
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == LABELS
    assert found["Service"]["spec"]["selector"] == LABELS
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == LABELS
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == LABELS
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    template = found["Deployment"]["spec"]["template"]["spec"]
    assert template["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"] == LABELS


def test_hosts_have_time_to_give_their_agents_away() -> None:
    spec = manifests()["Deployment"]["spec"]["template"]["spec"]
    grace_s = float(understood(spec["containers"][0]["args"])["grace_s"])
    assert spec["terminationGracePeriodSeconds"] >= grace_s + 15
    assert manifests()["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    for service in compose()["services"].values():
        if service["image"] == "zmqagents":
            grace_s = float(understood(service["command"])["grace_s"])
            assert float(service["stop_grace_period"].rstrip("s")) >= grace_s + 15


def test_clients_find_hosts_also_while_these_are_not_ready() -> None:
    service = manifests()["Service"]["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    [port] = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert service["ports"][0]["targetPort"] == port["name"]
    assert service["ports"][0]["port"] == port["containerPort"] == 12010


def test_probes_wait_as_long_as_the_health_check_does() -> None:
    [host] = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert host["livenessProbe"]["timeoutSeconds"] > 30
    assert host["startupProbe"]["timeoutSeconds"] > 30
    assert host["readinessProbe"]["exec"]["command"] == ["as_server", "health", "--ready"]


def test_no_container_may_more_than_it_must() -> None:
    spec = manifests()["Deployment"]["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    for container in containers():
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
    mounts = {mount["name"] for container in containers() for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["volumes"]}


def test_secrets_are_in_no_file() -> None:
    for path in PACKAGING.rglob("*"):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        assert not re.search(r"redis(s)?://[^/\s\"]*:[^/\s\"]*@", text.replace("user:password@host", "")), path
        assert "secret =" not in text


# ---------------------------------------------------------------- compose


def test_compose_has_a_redis_that_keeps_what_it_is_told_and_three_hosts() -> None:
    services = compose()["services"]
    redis = " ".join(services["redis"]["command"])
    assert "--appendonly yes" in redis
    assert "--maxmemory-policy noeviction" in redis
    hosts = {name: service for name, service in services.items() if service["image"] == "zmqagents"}
    assert len(hosts) == 3
    for name, service in hosts.items():
        assert service["environment"]["AS_SERVER_HOST"] == name, "the others reach it by this name"
        assert service["depends_on"]["redis"]["condition"] == "service_healthy"
        assert (PACKAGING / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DOCKERFILE
        for volume in service["volumes"]:
            source, *_ = volume.split(":")
            assert source in compose()["volumes"] or (PACKAGING / source).is_dir(), source
    published = [port.split(":")[1] for service in hosts.values() for port in service["ports"]]
    assert len(set(published)) == 3


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker")
def test_compose_itself_understands_the_file() -> None:
    command = ["docker", "compose", "-f", str(PACKAGING / "compose.yaml"), "config", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "is not a docker command" in result.stderr or "unknown shorthand flag" in result.stderr:
        pytest.skip("this docker has no compose")
    assert (result.returncode, result.stderr) == (0, "")


# ---------------------------------------------------------------- the Dockerfile


def test_each_image_that_is_built_on_has_a_version() -> None:
    for [(name, image), *_] in stages():
        assert name == "FROM"
        assert re.fullmatch(r"python:\d+\.\d+-slim-\w+( AS \w+)?", image)


def test_nothing_is_left_in_the_image_that_only_building_needs() -> None:
    build, final = stages()
    assert any("pip install --no-cache-dir" in rest for _, rest in build)
    assert not any("pip install" in rest for _, rest in final)
    assert ("COPY", "--from=build /opt/zmqagents /opt/zmqagents") in final


def test_what_is_copied_is_there_and_is_all_that_is_sent_to_the_engine() -> None:
    build, _ = stages()
    sources = [source for name, rest in build if name == "COPY" for source in shlex.split(rest)[:-1]]
    assert all((ROOT / source).exists() for source in sources)
    ignored = (PACKAGING / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    assert {f"!{source}" for source in sources} == set(re.findall(r"^!.*$", ignored, re.MULTILINE))


def test_the_host_is_no_root_and_process_one_without_a_shell() -> None:
    final = stages()[-1]
    [user] = [rest for name, rest in final if name == "USER"]
    assert user == "10001:10001"
    assert {"RUN", "COPY"}.isdisjoint(name for name, _ in final[final.index(("USER", user)) :])
    for name in ("ENTRYPOINT", "CMD"):
        [text] = [rest for each, rest in final if each == name]
        assert isinstance(json.loads(text), list)
    assert ("STOPSIGNAL", "SIGTERM") in final


def test_the_dockerfile_keeps_the_rules_of_its_linters() -> None:
    """Those of hadolint that no test above has: absolute folders, no ADD, no sudo or apt, no cache of pip."""
    for name, rest in (instruction for stage in stages() for instruction in stage):
        assert name not in ("ADD", "MAINTAINER")
        assert name != "WORKDIR" or rest.startswith("/")
        assert name != "RUN" or not re.search("sudo|apt-get", rest)
        assert "pip install" not in rest or "--no-cache-dir" in rest


def test_the_health_check_has_the_time_that_a_host_may_take() -> None:
    [check] = [rest for name, rest in stages()[-1] if name == "HEALTHCHECK"]
    assert float(re.findall(r"--timeout=(\d+)s", check)[0]) > 30


def test_the_user_of_the_image_can_have_its_keys_where_the_image_says(tmp_path: Path) -> None:
    """A folder within the volume: what is mounted there may belong to another user, and be open to others."""
    volume = tmp_path / "keys"
    volume.mkdir(mode=0o777)
    volume.chmod(0o777)
    environment = {**os.environ, "ZMQAGENTS_KEYS": str(volume / "store")}
    command = [sys.executable, "-m", "zmqagents", "keys", "path"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert (result.returncode, result.stdout) == (0, f"{volume}/store\n")
    assert (volume / "store").stat().st_mode & 0o777 == 0o700
