"""The manifests and the settings are in step."""

from __future__ import annotations

import pytest

from tests.manifests.policies.ray import resources
from tests.manifests.rendered import OVERLAYS, Object, Pod, named, objects, pods
from x2l_cluster.api.settings import ApiSettings
from x2l_cluster.cluster.indexing import RESOURCE
from x2l_cluster.settings import Settings

KNOWN = {f"X2L_{name}".upper() for name in Settings.model_fields}
KNOWN |= {f"X2L_API_{name}".upper() for name in ApiSettings.model_fields}
NEEDED = {f"X2L_{name}".upper() for name, field in Settings.model_fields.items() if field.is_required()}
SHARED = {"X2L_MODEL", "X2L_STORE", "X2L_STATE", "X2L_SOURCES"}
"""Whatever works on jobs or questions must be told: by default each would keep its own."""
WORKING = ("gateway", "prefill", "answer", "janitor")


def environment(pod: Pod, things: list[Object]) -> dict[str, str]:
    """Names and values of a pod's variables, of ConfigMaps too; those from a Secret are left as ``…``."""
    found: dict[str, str] = {}
    for container in pod.containers:
        for source in container.get("envFrom", ()):
            found |= named(things, "ConfigMap", source["configMapRef"]["name"])["data"]
        found |= {variable["name"]: variable.get("value", "…") for variable in container.get("env", ())}
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_variable_is_a_setting_and_takes_its_value(overlay):
    things = objects(overlay)
    for pod in pods(things):
        ours = {name: value for name, value in environment(pod, things).items() if name.startswith("X2L_")}
        assert set(ours) <= KNOWN, f"{pod.where}: {set(ours) - KNOWN} are no settings"
        Settings.model_validate({name.removeprefix("X2L_").lower(): value for name, value in ours.items()})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whoever_works_is_told_what_it_must_know(overlay):
    things = objects(overlay)
    working = [pod for pod in pods(things) if pod.component in WORKING]
    assert {pod.component for pod in working} == set(WORKING)
    for pod in working:
        assert set(environment(pod, things)) >= NEEDED | SHARED, pod.where


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_prefill_workers_have_nodes_to_run_on(overlay):
    """Ray's autoscaler adds no more pods than the group may have."""
    things = objects(overlay)
    settings = named(things, "ConfigMap", "x2l-settings")["data"]
    (prefill,) = (pod for pod in pods(things) if pod.component == "prefill")
    assert prefill.group is not None
    assert int(settings["X2L_PREFILL_MAX"]) == prefill.group["maxReplicas"]
    assert int(settings["X2L_PREFILL_MIN"]) == prefill.group["minReplicas"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_prefill_worker_has_a_pod_to_itself(overlay):
    """All of its CPUs and its GPU: what it does not ask Ray for, Ray hides from it."""
    things = objects(overlay)
    settings = named(things, "ConfigMap", "x2l-settings")["data"]
    (prefill,) = (pod for pod in pods(things) if pod.component == "prefill")
    asked = {"CPU": settings["X2L_PREFILL_CPUS"], "GPU": settings.get("X2L_PREFILL_GPUS", 0), RESOURCE: 1}
    assert {key: float(value) for key, value in asked.items()} == resources(prefill)


@pytest.mark.parametrize("overlay", [overlay for overlay in OVERLAYS if overlay != "dev"])
def test_a_fleet_asks_for_keys(overlay):
    assert named(objects(overlay), "ConfigMap", "x2l-settings")["data"]["X2L_API_KEYS"] == "required"
