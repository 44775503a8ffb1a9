"""The Ray cluster: what runs where, how it grows, how it goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from tests.manifests.policies.policy import pod_of, policy
from tests.manifests.rendered import Object, Pod, named, of_kind, pods, quantity


def service(things: list[Object]) -> Object:
    return named(things, "RayService", "x2l")


def cluster(things: list[Object]) -> Object:
    found: Object = service(things)["spec"]["rayClusterConfig"]
    return found


def deployments(things: list[Object]) -> dict[str, Object]:
    """Of the Serve applications, by name."""
    config = yaml.safe_load(service(things)["spec"]["serveConfigV2"])
    return {part["name"]: part for application in config["applications"] for part in application["deployments"]}


def resources(pod: Pod) -> dict[str, float]:
    """What Ray will say that a node of this group has."""
    assert pod.group is not None
    params, limits = pod.group["rayStartParams"], pod.spec["containers"][0]["resources"]["limits"]
    found = {"CPU": float(params.get("num-cpus", quantity(limits["cpu"])))}
    found["GPU"] = float(params.get("num-gpus", limits.get("nvidia.com/gpu", 0)))
    own = json.loads(json.loads(params["resources"])) if "resources" in params else {}
    return found | own


def _swap(old: str, new: str) -> Any:
    def change(things: list[Object]) -> None:
        spec = service(things)["spec"]
        assert old in spec["serveConfigV2"]
        spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new)

    return change


@policy(
    lambda things: cluster(things)["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
    lambda things: service(things)["spec"].update(excludeHeadPodFromServeSvc=False),
)
def the_head_runs_no_work(things: list[Object]) -> Iterator[str]:
    if cluster(things)["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "the head offers CPUs"
    if not service(things)["spec"]["excludeHeadPodFromServeSvc"]:
        yield "the head takes requests"


@policy(
    lambda things: cluster(things).pop("gcsFaultToleranceOptions"),
    lambda things: cluster(things)["gcsFaultToleranceOptions"].update(redisAddress="valkey-kv:6379"),
)
def a_lost_head_comes_back_with_what_it_knew(things: list[Object]) -> Iterator[str]:
    options = cluster(things).get("gcsFaultToleranceOptions", {})
    if "valkey-state:" not in options.get("redisAddress", ""):
        yield "Ray's tables are not in the state store"


@policy(
    lambda things: cluster(things).update(enableInTreeAutoscaling=False),
    lambda things: cluster(things)["autoscalerOptions"].update(version="v1"),
    lambda things: things.append(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "x"},
            "spec": {"scaleTargetRef": {"kind": "RayCluster", "name": "x2l"}},
        }
    ),
    _swap("autoscaling_config", "autoscaling_settings"),
)
def rays_autoscaler_alone_sizes_ray(things: list[Object]) -> Iterator[str]:
    if not cluster(things).get("enableInTreeAutoscaling") or cluster(things)["autoscalerOptions"]["version"] != "v2":
        yield "Ray's autoscaler v2 is off"
    for thing in of_kind(things, "HorizontalPodAutoscaler", "ScaledObject"):
        if thing["spec"]["scaleTargetRef"]["kind"].startswith("Ray"):
            yield f"{thing['metadata']['name']}: a second authority over Ray's pods"
    for name in ("answerer", "gateway"):
        if "autoscaling_config" not in deployments(things)[name]:
            yield f"{name}: does not follow its load"


@policy(
    lambda things: pod_of(things, "answer").spec["containers"][0].update(command=["ray", "start"]),
    lambda things: pod_of(things, "head").spec["containers"][0].update(args=["--head"]),
)
def kuberay_alone_starts_ray(things: list[Object]) -> Iterator[str]:
    for pod in pods(things):
        if pod.group is not None and {"command", "args"} & set(pod.spec["containers"][0]):
            yield f"{pod.where}: a command of its own beside `ray start`"


@policy(
    _swap("import_path: services.indexer.main:app", "import_path: services.indexer:app"),
    _swap("route_prefix: null", "route_prefix: /x"),
)
def the_applications_are_those_of_the_service(things: list[Object]) -> Iterator[str]:
    config = yaml.safe_load(service(things)["spec"]["serveConfigV2"])
    found = {part["name"]: (part["import_path"], part["route_prefix"]) for part in config["applications"]}
    routes = {"answerer": None, "indexer": None, "gateway": "/"}
    if found != {name: (f"services.{name}.main:app", route) for name, route in routes.items()}:
        yield f"the applications are {found}"


@policy(
    _swap("resources: {answer: 1}", "resources: {answers: 1}"),
    _swap("num_cpus: 0.5", "num_cpus: 5"),
    lambda things: pod_of(things, "answer").spec["containers"][0]["resources"]["limits"].pop("nvidia.com/gpu"),
    lambda things: cluster(things)["workerGroupSpecs"][0].update(minReplicas=0),
    _swap("max_replicas: 8, target_ongoing_requests: 16", "max_replicas: 80, target_ongoing_requests: 16"),
)
def replicas_find_room_on_the_nodes_of_their_group(things: list[Object]) -> Iterator[str]:
    """What Serve starts with fits the pods there are then, and what it may grow to the pods there may be."""
    groups = {pod.component: pod for pod in pods(things) if pod.component in ("gateway", "prefill", "answer")}
    for pods_key, serve_key in (("minReplicas", "min_replicas"), ("maxReplicas", "max_replicas")):
        room: dict[str, dict[str, float]] = {}
        for name, pod in groups.items():
            assert pod.group is not None
            room[name] = {key: value * pod.group[pods_key] for key, value in resources(pod).items()}
        for name, part in deployments(things).items():
            options = part["ray_actor_options"]
            homes = [group for group in room if set(options["resources"]) <= set(room[group])]
            if not homes:
                yield f"{name}: no group has {options['resources']}"
                continue
            home = room[homes[0]]
            wanted = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0), **options["resources"]}
            count = part.get("autoscaling_config", {}).get(serve_key, part.get("num_replicas"))
            for key, amount in wanted.items():
                home[key] -= amount * count
                if home[key] < 0:
                    yield f"{name}: {count} replicas do not fit into the {pods_key} of {homes[0]}: {key}"


@policy(
    lambda things: pod_of(things, "answer").spec.pop("tolerations"),
    lambda things: pod_of(things, "prefill").spec.pop("nodeSelector"),
    lambda things: pod_of(things, "answer").group["rayStartParams"].update({"num-gpus": "0"}),
)
def gpu_pods_go_to_gpu_nodes_and_use_them(things: list[Object]) -> Iterator[str]:
    for pod in pods(things):
        if "nvidia.com/gpu" not in pod.spec["containers"][0]["resources"]["limits"]:
            continue
        if "nodeSelector" not in pod.spec or not any(
            t["key"] == "nvidia.com/gpu" for t in pod.spec.get("tolerations", ())
        ):
            yield f"{pod.where}: wants a GPU, and is not led to one"
        if pod.group is not None and not resources(pod)["GPU"]:
            yield f"{pod.where}: has a GPU that Ray does not know of"


@policy(
    lambda things: pod_of(things, "answer").spec["containers"][0].pop("lifecycle"),
    lambda things: pod_of(things, "prefill").spec.update(terminationGracePeriodSeconds=30),
    _swap("graceful_shutdown_timeout_s: 100", "graceful_shutdown_timeout_s: 200"),
)
def workers_finish_what_they_have(things: list[Object]) -> Iterator[str]:
    """Replicas stop within their time, that within the drain, that within the pod's grace."""
    slowest = max(part.get("graceful_shutdown_timeout_s", 20) for part in deployments(things).values())
    for pod in pods(things):
        if pod.group is None or pod.component == "head":
            continue
        hook = pod.spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["0"])
        if not slowest < int(hook[-1]) < pod.spec["terminationGracePeriodSeconds"]:
            yield f"{pod.where}: is killed while it works"


@policy(
    lambda things: pod_of(things, "answer").spec["containers"][0]["livenessProbe"]["httpGet"].update(path="/readyz"),
    lambda things: pod_of(things, "gateway").spec["containers"][0].pop("readinessProbe"),
    lambda things: pod_of(things, "answer").spec["containers"][0]["readinessProbe"]["httpGet"].update(path="/livez"),
    lambda things: pod_of(things, "valkey-kv").spec["containers"][0].pop("startupProbe"),
)
def probes_tell_alive_from_able_to_answer(things: list[Object]) -> Iterator[str]:
    """A pod without a model, or without its stores, is not ready; it is not killed for that."""
    for pod in pods(things):
        if pod.spec.get("restartPolicy", "Always") != "Always":
            continue
        main = pod.spec["containers"][0]
        if not {"startupProbe", "livenessProbe", "readinessProbe"} <= set(main):
            yield f"{pod.where}: a probe is missing"
            continue
        if "readyz" in str(main["livenessProbe"]) or "readyz" in str(main["startupProbe"]):
            yield f"{pod.where}: is killed while it cannot answer"
        ready = main["readinessProbe"].get("httpGet")
        if pod.component in ("gateway", "answer") and ready != {"path": "/readyz", "port": "serve"}:
            yield f"{pod.where}: is ready before it can answer"


@policy(
    lambda things: service(things)["spec"]["upgradeStrategy"].update(type="None"),
    lambda things: cluster(things).pop("authOptions"),
    lambda things: cluster(things).update(rayVersion="2.9.0"),
)
def upgrades_go_beside_and_ray_asks_for_a_token(things: list[Object]) -> Iterator[str]:
    import ray

    if service(things)["spec"].get("upgradeStrategy", {}).get("type") != "NewCluster":
        yield "an upgrade stops the service"
    if cluster(things).get("authOptions", {}).get("mode") != "token":
        yield "anybody in the network may give Ray work"
    if cluster(things)["rayVersion"] != ray.__version__:
        yield f"the tests run with Ray {ray.__version__}"


@policy(
    lambda things: named(things, "ConfigMap", "x2l-settings")["data"].update(X2L_MODEL="Qwen/Qwen3-VL-8B-Instruct"),
    lambda things: pod_of(things, "answer").spec["containers"][0].update(volumeMounts=[]),
    lambda things: pod_of(things, "answer").spec.pop("initContainers"),
)
def weights_come_from_a_volume(things: list[Object]) -> Iterator[str]:
    """Or with the package; never from the internet when a pod starts."""
    model = named(things, "ConfigMap", "x2l-settings")["data"]["X2L_MODEL"]
    if model == "reference":
        return
    for component in ("prefill", "answer"):
        pod = pod_of(things, component)
        mounts = {m["mountPath"]: m.get("readOnly") for m in pod.spec["containers"][0]["volumeMounts"]}
        if not any(model.startswith(f"{path}/") and read_only for path, read_only in mounts.items()):
            yield f"{pod.where}: {model} is on no volume"
        if not any(container["name"] == "model" for container in pod.spec.get("initContainers", ())):
            yield f"{pod.where}: starts before its weights are there"
