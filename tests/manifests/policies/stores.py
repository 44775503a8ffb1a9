"""The stores and what keeps the service up while nodes come and go."""

from __future__ import annotations

from collections.abc import Iterator

from tests.manifests.policies.network import selects
from tests.manifests.policies.policy import pod_of, policy
from tests.manifests.rendered import Object, Pod, named, of_kind, pods, quantity


def size(things: list[Object], pod: Pod) -> int:
    """How many of a pod there are at least."""
    if pod.group is not None:
        return int(pod.group.get("minReplicas", 1))
    for thing in of_kind(things, "StatefulSet", "Deployment"):
        if thing["spec"]["template"] is pod.template:
            return int(thing["spec"]["replicas"])
    return 0


def _claims(thing: Object) -> set[str]:
    return {claim["metadata"]["name"] for claim in thing["spec"].get("volumeClaimTemplates", ())}


@policy(
    lambda things: named(things, "StatefulSet", "valkey-state")["spec"].pop("volumeClaimTemplates"),
    lambda things: named(things, "StatefulSet", "valkey-state")["spec"].update(
        persistentVolumeClaimRetentionPolicy={"whenDeleted": "Delete", "whenScaled": "Retain"}
    ),
)
def state_lies_on_a_volume_that_stays(things: list[Object]) -> Iterator[str]:
    for thing in of_kind(things, "StatefulSet"):
        if not thing["metadata"]["name"].startswith("valkey-state"):
            continue
        kept = thing["spec"].get("persistentVolumeClaimRetentionPolicy", {"whenDeleted": "Retain"})
        if "data" not in _claims(thing) or kept["whenDeleted"] != "Retain":
            yield f"{thing['metadata']['name']}: what it knows goes with it"


@policy(
    lambda things: pod_of(things, "valkey-kv").spec["containers"][0]["env"][0].update(value="255gb"),
    lambda things: pod_of(things, "valkey-state").spec["containers"][0]["resources"]["limits"].update(memory="1Gi"),
    lambda things: pod_of(things, "valkey-kv").spec["containers"][0].update(command=["valkey-server"]),
)
def valkeys_have_a_quarter_more_memory_than_they_fill(things: list[Object]) -> Iterator[str]:
    """For buffers of clients and what fragments; a server that is killed for memory forgets everything."""
    for pod in pods(things):
        if not pod.component.startswith("valkey"):
            continue
        server = pod.spec["containers"][0]
        if "--maxmemory $(MAXMEMORY)" not in " ".join(server["command"]):
            yield f"{pod.where}: has no bound"
        most = next(v["value"] for v in server["env"] if v["name"] == "MAXMEMORY")
        if quantity(server["resources"]["limits"]["memory"]) < 1.25 * quantity(most):
            yield f"{pod.where}: may fill {most} of {server['resources']['limits']['memory']}"


@policy(
    lambda things: things.remove(named(things, "PodDisruptionBudget", "x2l-gateway")),
    lambda things: named(things, "PodDisruptionBudget", "x2l-gateway")["spec"].update(minAvailable=9),
    lambda things: named(things, "PodDisruptionBudget", "valkey-kv")["spec"].update(maxUnavailable=0),
    lambda things: named(things, "PodDisruptionBudget", "x2l-gateway")["spec"].update(minAvailable="50%"),
)
def a_drain_takes_one_pod_at_a_time_and_ends(things: list[Object]) -> Iterator[str]:
    for pod in pods(things):
        budgets = [
            t["spec"] for t in of_kind(things, "PodDisruptionBudget") if selects(t["spec"]["selector"], pod.labels)
        ]
        count = size(things, pod)
        if len(budgets) != 1 and count > 1:
            yield f"{pod.where}: {len(budgets)} budgets"
        for budget in budgets:
            if pod.group is not None:  # no controller with a size: only a whole number can be counted
                least = budget.get("minAvailable")
                if not isinstance(least, int) or not 0 < least < count:
                    yield f"{pod.where}: {least} of {count} must stay"
            elif budget.get("maxUnavailable") != 1:
                yield f"{pod.where}: not one at a time"


@policy(
    lambda things: named(things, "CronJob", "x2l-janitor")["spec"].update(concurrencyPolicy="Allow"),
    lambda things: named(things, "CronJob", "x2l-janitor")["spec"]["jobTemplate"]["spec"].pop("activeDeadlineSeconds"),
    lambda things: named(things, "CronJob", "x2l-janitor")["spec"].update(suspend=True),
    lambda things: things.remove(named(things, "CronJob", "x2l-janitor")),
)
def one_janitor_at_a_time_for_a_bounded_time(things: list[Object]) -> Iterator[str]:
    found = of_kind(things, "CronJob")
    if [thing["metadata"]["name"] for thing in found] != ["x2l-janitor"]:
        yield "there is no janitor"
        return
    spec = found[0]["spec"]
    if spec.get("concurrencyPolicy") != "Forbid" or spec.get("suspend"):
        yield "janitors may meet, or none comes"
    if "activeDeadlineSeconds" not in spec["jobTemplate"]["spec"] or "startingDeadlineSeconds" not in spec:
        yield "a janitor that hangs keeps the next from coming"


@policy(
    lambda things: pod_of(things, "gateway").spec.pop("topologySpreadConstraints"),
    lambda things: (
        pod_of(things, "valkey-kv")
        .spec["topologySpreadConstraints"][0]["labelSelector"]
        .update(matchLabels={"app.kubernetes.io/component": "valkey-state"})
    ),
)
def what_there_are_several_of_is_spread(things: list[Object]) -> Iterator[str]:
    for pod in pods(things):
        if size(things, pod) < 2:
            continue
        spread = pod.spec.get("topologySpreadConstraints", ())
        if not any(selects(rule["labelSelector"], pod.labels) for rule in spread):
            yield f"{pod.where}: all may stand on one node"
