"""What an operator types is what the manifests ask for."""

from __future__ import annotations

import re

import pytest

from tests.manifests.kubectl import ROOT
from tests.manifests.rendered import OVERLAYS, named, objects, of_kind, pods
from x2l_cluster.settings import Settings

README = (ROOT / "k8s" / "README.md").read_text()


@pytest.mark.parametrize("store", ["state", "kv"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_have_a_password_for_every_user(store, overlay):
    template = named(objects(overlay), "ConfigMap", f"valkey-{store}")["data"]["users.tmpl"]
    users = {line.split()[0] for line in template.splitlines() if line and not line.startswith("#")}
    (typed,) = re.findall(rf"secret valkey-{store}-users (.+)", README)
    assert set(typed.split()) == users


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_secret_of_a_pod_is_named(overlay):
    for pod in pods(objects(overlay)):
        asked = [volume["secret"]["secretName"] for volume in pod.spec.get("volumes", ()) if "secret" in volume]
        for container in pod.containers:
            sources = (variable.get("valueFrom", {}) for variable in container.get("env", ()))
            asked += [source["secretKeyRef"]["name"] for source in sources if "secretKeyRef" in source]
        assert all(name in README for name in asked)


def test_settings_that_are_named_exist():
    known = {f"X2L_{name}".upper() for name in Settings.model_fields} | {"X2L_URL", "X2L_API_KEY"}
    assert set(re.findall(r"\bX2L_[A-Z_]+", README)) <= known


def test_what_is_named_in_the_cluster_exists():
    things = objects("ha")
    there = {thing["metadata"]["name"] for thing in things}
    for name in ("x2l-index", "x2l-sources", "x2l-model", "valkey-state", "valkey-kv"):
        assert name in README
        assert name in there
    (state,) = (thing for thing in of_kind(things, "StatefulSet") if thing["metadata"]["name"] == "valkey-state")
    assert "PRIMARY" in str(state["spec"]["template"]["spec"]["containers"][0]["env"])
