"""The life of pods as packaging/kubernetes has them: the same commands, variables and probes, used as a kubelet does.

Each pod is a network namespace with an address of its own. Two of three pods are replaced under calls, as a Deployment
does it: one more first, which must be ready, then SIGTERM to an old one.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import counting
from hosts import ROOT, environment
from net_hosts import redis_on
from net_world import Machine, Network, needs_network, network
from redis_server import RedisServer
from scale import linux_only
from zmqagents.security.keys import KeyStore

pytestmark = [pytest.mark.program, pytest.mark.timeout(180), linux_only("CLOCK_BOOTTIME")]

PORT = 12010
PODS = 4
PROBE_S = 0.1  # how often, here: faster than in the manifest
READY_S = 40.0


def pod_template() -> dict[str, Any]:
    path = ROOT / "packaging" / "kubernetes" / "base" / "deployment.yaml"
    template: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    return template


class Pod:
    """One pod: its containers are processes on ``machine``; what the manifest mounts lies in ``folder``."""

    def __init__(self, name: str, machine: Machine, folder: Path, redis_url: str) -> None:
        self.name, self.machine, self.folder = name, machine, folder
        self._values = {"status.podIP": machine.address, "metadata.name": name, "url": redis_url}
        self._template = pod_template()
        for mount in ("keys", "tmp"):
            (folder / name / mount).mkdir(parents=True)
        importing, following = self._template["initContainers"]
        done = subprocess.run(**self._command(importing, importing["args"]), capture_output=True, timeout=30)
        assert done.returncode == 0, done.stderr
        self.sidecar = subprocess.Popen(**self._command(following, following["args"]), stdout=subprocess.DEVNULL)
        [self._container] = self._template["containers"]
        self.host = subprocess.Popen(
            **self._command(self._container, self._container["args"]), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def _here(self, text: str) -> str:
        """Paths of the container, as paths of this machine."""
        mounts = {"/secret": "secret", "/agents": "agents", "/keys": f"{self.name}/keys", "/tmp": f"{self.name}/tmp"}
        for mount, place in mounts.items():
            if text == mount or text.startswith(f"{mount}/"):
                return str(self.folder / place) + text.removeprefix(mount)
        return text

    def _command(self, container: dict[str, Any], words: list[str]) -> dict[str, Any]:
        """How a container's command is run: with no variables but those of the image and its own."""
        given = {name: value for name, value in environment().items() if name in ("PATH", "PYTHONPATH", "LANG")}
        for variable in container["env"]:
            source = variable.get("valueFrom", {})
            [key] = [each.get("fieldPath") or each["key"] for each in source.values()] or [""]
            given[variable["name"]] = self._values[key] if source else self._here(variable["value"])
        words = [self._here(word) for word in words]
        return {"args": [*self.machine.within, sys.executable, "-m", "zmqagents", *words], "env": given}

    def probe(self, name: str) -> bool:
        """What a probe of the manifest says now."""
        probe = self._container[name]
        how = self._command(self._container, probe["exec"]["command"][1:])
        return subprocess.run(**how, capture_output=True, timeout=probe["timeoutSeconds"]).returncode == 0

    def wait_until_ready(self) -> None:
        """Started first, then ready, as a kubelet asks."""
        end = time.monotonic() + READY_S
        for name in ("startupProbe", "readinessProbe"):
            while not self.probe(name):
                assert self.host.poll() is None, "the host has ended"
                assert time.monotonic() < end, f"{name} is never right"
                time.sleep(PROBE_S)

    def terminate(self) -> tuple[int, bool, bytes]:
        """SIGTERM: the exit status, whether it was seen not to be ready meanwhile, and what it has said."""
        was_unready = False
        self.host.terminate()
        end = time.monotonic() + self._template["terminationGracePeriodSeconds"]
        while self.host.poll() is None:
            assert time.monotonic() < end, "here Kubernetes would kill it"
            was_unready = not self.probe("readinessProbe") or was_unready
        _, said = self.host.communicate()
        return self.host.returncode, was_unready, said

    def close(self) -> None:
        """End what still runs."""
        for process in (self.host, self.sidecar):
            process.kill()
            process.wait()
        assert self.host.stderr is not None
        self.host.stderr.close()


@contextlib.contextmanager
def place() -> Iterator[tuple[Network, RedisServer, Path]]:
    """A network with a Redis on its hub, and a folder with the secret and the agents."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="zap")))
        net = stack.enter_context(network(PODS))
        redis = stack.enter_context(redis_on(net))
        (folder / "agents").mkdir()
        (folder / "agents" / "counting.py").write_text(Path(counting.__file__).read_text(encoding="utf-8"))
        (folder / "secret").mkdir()
        keys = KeyStore.open(folder / "client")
        export = [sys.executable, "-m", "zmqagents", "keys", "export", str(folder / "secret" / "shop.keys")]
        subprocess.run(export, check=True, capture_output=True, env=environment(ZMQAGENTS_KEYS=str(keys.path)))
        for number in range(1, PODS + 1):
            keys.remember_host(net[number].address, PORT, keys.server_keypair().public)
        yield net, redis, folder


def test_pods_start_are_ready_and_go_under_calls_of_which_none_fails(tmp_path: Path) -> None:
    needs_network()
    with place() as (net, redis, folder), contextlib.ExitStack() as stack:

        def begin(number: int) -> Pod:
            pod = Pod(f"agents-{number}", net[number], folder, f"redis://{net.hub.address}:{redis.port}")
            stack.callback(pod.close)
            return pod

        pods = [begin(1), begin(2)]
        for pod in pods:
            pod.wait_until_ready()
            assert pod.probe("livenessProbe")
        addresses = ",".join(f"{net[number].address}:{PORT}" for number in range(1, PODS + 1))
        program = [*net.hub.within, sys.executable, counting.__file__, addresses, "0", "40", str(tmp_path)]
        given = environment(ZMQAGENTS_KEYS=str(folder / "client"), ZMQAGENTS_RUNTIME=str(folder / "none"))
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=given) as calls:
            unready = 0
            for number, old in enumerate(pods, 3):
                begin(number).wait_until_ready()
                status, was_unready, said = old.terminate()
                assert status == 0
                told, *_ = said.split(b"Timeout (")  # the stacks of an interpreter that ends slowly, on a busy machine
                assert all(b"lets running and queued calls end" in line for line in told.splitlines()), said
                unready += was_unready
            out, _ = calls.communicate(timeout=60)
        told = json.loads(out)
    assert (told["errors"], told["unsure"]) == ({}, {})
    counts = sum(len(file.read_text().splitlines()) for file in tmp_path.iterdir())
    assert counts == sum(told["kept"].values()) > 500
    print(f"{counts} calls while two pods were replaced; seen not to be ready: {unready}")
