"""Pods: what they may do on their node, what they cost, where their images and secrets come from."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.manifests.policies.policy import containers, pod_of, policy
from tests.manifests.rendered import Object, named, of_kind, pods, quantity


@policy(
    lambda things: pod_of(things, "answer").spec["securityContext"].update(runAsNonRoot=False),
    lambda things: pod_of(things, "janitor").spec["securityContext"].update(runAsUser=0),
    lambda things: pod_of(things, "valkey-kv").spec["securityContext"].pop("seccompProfile"),
    lambda things: pod_of(things, "head").spec["containers"][0]["securityContext"].update(runAsUser=0),
)
def pods_run_as_nobody_special(things: list[Object]) -> Iterator[str]:
    for pod in pods(things):
        context = pod.spec.get("securityContext", {})
        if not context.get("runAsNonRoot") or not context.get("runAsUser"):
            yield f"{pod.where}: may run as root"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.where}: has no seccomp profile"
    for where, container in containers(things):
        changed = {"runAsNonRoot", "runAsUser", "seccompProfile"} & set(container.get("securityContext", {}))
        if changed:
            yield f"{where}: changes {changed} of its pod"


@policy(
    lambda things: pod_of(things, "prefill").spec["containers"][0].pop("securityContext"),
    lambda things: (
        pod_of(things, "model").spec["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False)
    ),
    lambda things: pod_of(things, "answer").spec["initContainers"][0]["securityContext"]["capabilities"].pop("drop"),
    lambda things: named(things, "RayService", "x2l")["spec"]["rayClusterConfig"]["autoscalerOptions"].pop(
        "securityContext"
    ),
)
def containers_can_do_nothing_but_their_work(things: list[Object]) -> Iterator[str]:
    wanted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for where, container in containers(things):
        if container.get("securityContext") != wanted:
            yield f"{where}: its security context is not {wanted}"


@policy(
    lambda things: pod_of(things, "answer").spec.update(hostIPC=True),
    lambda things: pod_of(things, "answer").spec["volumes"].append({"name": "x", "hostPath": {"path": "/dev/shm"}}),
    lambda things: pod_of(things, "gateway").spec["containers"][0]["ports"][0].update(hostPort=80),
)
def no_pod_touches_its_node(things: list[Object]) -> Iterator[str]:
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    for pod in pods(things):
        for share in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(share):
                yield f"{pod.where}: {share}"
        for volume in pod.spec.get("volumes", ()):
            if not set(volume) - {"name"} <= allowed:
                yield f"{pod.where}: volume {volume}"
        for container in pod.containers:
            if any("hostPort" in port for port in container.get("ports", ())):
                yield f"{pod.where}: a port of its node"


@policy(
    lambda things: pod_of(things, "answer").spec.update(automountServiceAccountToken=True),
    lambda things: pod_of(things, "janitor").spec.pop("automountServiceAccountToken"),
    lambda things: named(things, "ServiceAccount", "x2l").pop("automountServiceAccountToken"),
    lambda things: pod_of(things, "gateway").spec.update(enableServiceLinks=True),
)
def only_the_autoscaler_has_a_token(things: list[Object]) -> Iterator[str]:
    for pod in pods(things):
        if pod.spec.get("automountServiceAccountToken", True) != (pod.component == "head"):
            yield f"{pod.where}: has a token, or none though it is the head"
        if pod.spec.get("serviceAccountName", "default") == "default":
            yield f"{pod.where}: uses the default account"
        if pod.spec.get("enableServiceLinks", True):
            yield f"{pod.where}: is told of every service in its environment"
    for account in of_kind(things, "ServiceAccount"):
        if account.get("automountServiceAccountToken", True):
            yield f"account {account['metadata']['name']}: gives its token to whoever does not refuse"


@policy(
    lambda things: pod_of(things, "head").spec["containers"][0]["resources"]["limits"].pop("memory"),
    lambda things: pod_of(things, "valkey-state").spec["initContainers"][0]["resources"].pop("requests"),
    lambda things: pod_of(things, "prefill").spec["containers"][0]["resources"]["requests"].update(memory="1Gi"),
)
def containers_ask_for_what_they_may_use(things: list[Object]) -> Iterator[str]:
    for where, container in containers(things):
        resources = container.get("resources", {})
        asked, limits = resources.get("requests", {}), resources.get("limits", {})
        for name in ("cpu", "memory"):
            if name not in asked or name not in limits:
                yield f"{where}: no request or no limit of {name}"
    for pod in pods(things):
        resources = pod.spec["containers"][0].get("resources", {})
        asked, limits = resources.get("requests", {}), resources.get("limits", {})
        if pod.spec.get("restartPolicy") is None and asked.get("memory") != limits.get("memory"):
            yield f"{pod.where}: could be killed for memory that it was not promised"


@policy(
    lambda things: pod_of(things, "answer").spec["volumes"][2]["emptyDir"].update(sizeLimit="200Gi"),
    lambda things: pod_of(things, "answer").spec["volumes"][2]["emptyDir"].update(sizeLimit="8Gi"),
    lambda things: pod_of(things, "valkey-kv").spec["volumes"][2]["emptyDir"].pop("sizeLimit"),
)
def memory_limits_cover_what_lies_in_shared_memory(things: list[Object]) -> Iterator[str]:
    for pod in pods(things):
        limit = sum(quantity(container["resources"]["limits"]["memory"]) for container in pod.spec["containers"])
        folders = {volume["name"]: volume["emptyDir"] for volume in pod.spec.get("volumes", ()) if "emptyDir" in volume}
        if any("sizeLimit" not in folder for folder in folders.values()):
            yield f"{pod.where}: a folder without a bound"
            continue
        memory = sum(quantity(folder["sizeLimit"]) for folder in folders.values() if folder.get("medium") == "Memory")
        if memory > 0.75 * limit:
            yield f"{pod.where}: {memory:.0f} bytes of memory in folders, of {limit:.0f} in all"
        if pod.group is None:
            continue
        if folders["shm"].get("medium") != "Memory":
            yield f"{pod.where}: /dev/shm is not memory"
        environment = {v["name"]: v.get("value") for v in pod.spec["containers"][0].get("env", ())}
        needed = int(pod.group["rayStartParams"]["object-store-memory"]) + int(environment.get("ARENA_BYTES", 0))
        if needed > quantity(folders["shm"]["sizeLimit"]):
            yield f"{pod.where}: the object store and the arena do not fit into /dev/shm"


@policy(
    lambda things: pod_of(things, "answer").spec["containers"][0].update(image="ghcr.io/x2l-cluster/ray:latest"),
    lambda things: pod_of(things, "answer").spec["initContainers"][0].update(image="ghcr.io/x2l-cluster/ray"),
    lambda things: pod_of(things, "janitor").spec["containers"][0].update(image="x2l-cluster/janitor:0.1.0"),
)
def images_are_named_whole(things: list[Object]) -> Iterator[str]:
    """With their registry, and a version or a digest."""
    whole = re.compile(r"[a-z0-9.-]+\.[a-z]+/[\w./-]+(:v?\d+\.\d+[\w.-]*|@sha256:[0-9a-f]{64})")
    for where, container in containers(things):
        if "image" in container and not whole.fullmatch(container["image"]):
            yield f"{where}: image {container['image']}"


@policy(
    lambda things: things.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {}}),
    lambda things: pod_of(things, "janitor").spec["containers"][0]["env"].append({"name": "API_TOKEN", "value": "x"}),
    lambda things: named(things, "ConfigMap", "x2l-settings")["data"].update(X2L_STATE="valkey://a:b@valkey-state"),
    lambda things: named(things, "RayService", "x2l")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"].update(
        redisPassword={"value": "x"}
    ),
)
def secrets_are_only_referred_to(things: list[Object]) -> Iterator[str]:
    for thing in things:
        if thing["kind"] == "Secret":
            yield f"Secret {thing['metadata']['name']} is written down"
        for path, name, value in _pairs(thing):
            if not isinstance(value, str):
                continue
            if name != "secretName" and re.search(r"password|token|secret|credential", name, re.IGNORECASE):
                yield f"{path}: a secret in plain sight"
            if re.search(r"://[^/@\s$]*:[^@$\s/]+@", value):
                yield f"{path}: a password in a URL"
        if thing["kind"] == "RayService":
            password = thing["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisPassword"]
            if "valueFrom" not in password:
                yield "Ray's password is not from a Secret"


def _pairs(thing: object, path: str = "") -> Iterator[tuple[str, str, object]]:
    """Every name and its value; of a variable its own name and what it holds."""
    if isinstance(thing, list):
        for place, part in enumerate(thing):
            yield from _pairs(part, f"{path}[{place}]")
    elif isinstance(thing, dict):
        if set(thing) == {"name", "value"}:
            yield path, thing["name"], thing["value"]
        for name, value in thing.items():
            yield f"{path}.{name}", name, value
            yield from _pairs(value, f"{path}.{name}")


@policy(
    lambda things: pod_of(things, "answer").spec.update(priorityClassName="x2l-nothing"),
    lambda things: pod_of(things, "valkey-state").spec.pop("priorityClassName"),
    lambda things: things.remove(named(things, "PersistentVolumeClaim", "x2l-index")),
    lambda things: named(things, "ConfigMap", "x2l-settings")["metadata"].update(name="x2l-settings-other"),
    lambda things: things.remove(named(things, "ServiceAccount", "x2l-head")),
)
def what_pods_name_is_there(things: list[Object]) -> Iterator[str]:
    there = {(thing["kind"], thing["metadata"]["name"]) for thing in things}
    for pod in pods(things):
        wanted = {
            ("PriorityClass", pod.spec.get("priorityClassName")),
            ("ServiceAccount", pod.spec.get("serviceAccountName")),
        }
        for volume in pod.spec.get("volumes", ()):
            if "configMap" in volume:
                wanted.add(("ConfigMap", volume["configMap"]["name"]))
            if "persistentVolumeClaim" in volume:
                wanted.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        for container in pod.containers:
            wanted |= {("ConfigMap", source["configMapRef"]["name"]) for source in container.get("envFrom", ())}
        for kind, name in sorted(wanted - there, key=str):
            yield f"{pod.where}: there is no {kind} {name}"
