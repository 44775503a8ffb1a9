"""The Ray pods of an overlay as nodes of a cluster on this machine: their environment, their resources, their paths."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.manifests.kubectl import ROOT
from tests.manifests.rendered import Object, Pod, named, objects, pods, quantity
from tests.manifests.valkeys import Store, expanded

ARENA_BYTES = 16 << 20
"""Of a node's arena, here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """This machine as a cluster of pods: where the stores run, and the folder their volumes are in."""

    overlay: str
    state: Store
    kv: Store
    folder: Path

    def environment(self, component: str) -> dict[str, str]:
        """Of a pod's first container, as rendered; hosts and paths are those of here, and TLS is left out."""
        things = objects(self.overlay)
        container = pod_of(things, component).spec["containers"][0]
        found: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            found |= named(things, "ConfigMap", source["configMapRef"]["name"])["data"]
        plain = {"VALKEY_SCHEME": "valkey", "VALKEY_TLS": "", "ARENA_BYTES": str(ARENA_BYTES)}
        found |= expanded(container.get("env", []), plain)
        return {name: self._here(value, component) for name, value in found.items()} | {"PYTHONPATH": str(ROOT)}

    def node(self, component: str) -> dict[str, Any]:
        """What a node of a local cluster is started with."""
        group = pod_of(objects(self.overlay), component).group
        assert group is not None
        started = group["rayStartParams"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        return {
            "num_cpus": int(started.get("num-cpus", quantity(limits["cpu"]))),
            "resources": json.loads(shlex.split(started.get("resources", "{}"))[0]),
            "env_vars": self.environment(component),
        }

    def process(self, component: str) -> tuple[list[str], dict[str, str]]:
        """The command of a pod's first container and its environment, for a process of this machine."""
        container = pod_of(objects(self.overlay), component).spec["containers"][0]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return container["command"], {"PATH": path, **self.environment(component)}

    def _here(self, value: str, component: str) -> str:
        for name, store in (("state", self.state), ("kv", self.kv)):
            value = value.replace(f"@valkey-{name}:", f"@{store.places[0].address}:")
        value = value.replace("/var/lib/x2l", str(self.folder))
        return value.replace("/dev/shm/x2l", f"{self.folder}/arena-{component}")


def pod_of(things: list[Object], component: str) -> Pod:
    return next(pod for pod in pods(things) if pod.component == component)
