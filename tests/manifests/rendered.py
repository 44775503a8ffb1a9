"""What the overlays render to, and the pods in it, wherever they are written down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from tests.manifests.kubectl import ROOT, render

Object = dict[str, Any]
OVERLAYS = ("dev", "gpu", "ha")


def objects(overlay: str) -> list[Object]:
    """Fresh ones, which a test may break."""
    things: list[Object] = json.loads(_rendered(overlay))
    return things


@cache
def _rendered(overlay: str) -> str:
    return json.dumps(list(yaml.load_all(render(ROOT / "k8s" / "overlays" / overlay), Loader=yaml.CSafeLoader)))


def title(thing: Object) -> str:
    return f"{thing['kind']} {thing['metadata']['name']}"


def of_kind(things: list[Object], *kinds: str) -> list[Object]:
    return [thing for thing in things if thing["kind"] in kinds]


def named(things: list[Object], kind: str, name: str) -> Object:
    """The one of that name; a generated name may go on with the digest of what is in it."""
    names = {thing["metadata"]["name"]: thing for thing in of_kind(things, kind)}
    return names.get(name) or next(thing for full, thing in names.items() if full.rpartition("-")[0] == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod template and where it stands."""

    where: str
    component: str
    template: Object
    group: Object | None = None
    """The Ray group it belongs to."""

    @property
    def spec(self) -> Object:
        spec: Object = self.template["spec"]
        return spec

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.template["metadata"]["labels"]
        return labels

    @property
    def containers(self) -> list[Object]:
        """All of them, with those that run before."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def pods(things: list[Object]) -> list[Pod]:
    return list(_pods(things))


def _pods(things: list[Object]) -> Iterator[Pod]:
    for thing in things:
        spec = thing.get("spec") or {}
        match thing["kind"]:
            case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
                yield _pod(title(thing), spec["template"])
            case "CronJob":
                yield _pod(title(thing), spec["jobTemplate"]["spec"]["template"])
            case "RayService":
                cluster = spec["rayClusterConfig"]
                for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                    yield _pod(f"{title(thing)} {group.get('groupName', 'head')}", group["template"], group)
            case "Pod" | "ReplicaSet" | "ReplicationController" | "RayCluster" | "RayJob":
                raise AssertionError(f"{title(thing)}: the tests do not look into a {thing['kind']} yet")


def _pod(where: str, template: Object, group: Object | None = None) -> Pod:
    labels = template.get("metadata", {}).get("labels", {})
    return Pod(where=where, component=labels.get("app.kubernetes.io/component", ""), template=template, group=group)


def quantity(text: str | int) -> float:
    """Bytes or cores of what Kubernetes (``2Gi``, ``500m``) and Valkey (``6gb``) write."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "m": 1e-3}
    units |= {"kb": 2**10, "mb": 2**20, "gb": 2**30}
    for unit in sorted(units, key=len, reverse=True):
        if str(text).endswith(unit):
            return float(str(text).removesuffix(unit)) * units[unit]
    return float(text)
