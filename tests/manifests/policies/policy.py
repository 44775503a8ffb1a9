"""How a policy is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from tests.manifests.rendered import Object, Pod, pods

Rule = Callable[[list[Object]], Iterable[str]]
Break = Callable[[list[Object]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """``broken`` yields a line for everything that does not hold; each of ``breaks`` makes it yield one."""

    name: str
    broken: Rule
    breaks: tuple[Break, ...]


POLICIES: Final[list[Policy]] = []


def policy(*breaks: Break) -> Callable[[Rule], Rule]:
    """Adds a rule, with ways to break it. Those are tried on the overlay ``ha``, which has everything."""

    def add(rule: Rule) -> Rule:
        POLICIES.append(Policy(name=rule.__name__, broken=rule, breaks=breaks))
        return rule

    return add


def pod_of(things: list[Object], component: str) -> Pod:
    return next(pod for pod in pods(things) if pod.component == component)


def containers(things: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every container and where it is; the one that KubeRay adds to the head too."""
    for pod in pods(things):
        for container in pod.containers:
            yield f"{pod.where}/{container['name']}", container
    for thing in things:
        if thing["kind"] == "RayService":
            yield "autoscaler", thing["spec"]["rayClusterConfig"]["autoscalerOptions"]
