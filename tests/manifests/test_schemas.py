"""Every object is one Kubernetes takes: core kinds by the schemas of three versions, custom ones by their CRDs."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate.utils as kubernetes
import pytest
from packaging.version import Version

from tests.manifests.kubectl import ROOT
from tests.manifests.rendered import OVERLAYS, Object, objects, pods, title

VERSIONS = sorted(set(kubernetes.all_versions()), key=Version)[-3:]
CRD_SCHEMAS = Path(os.environ.get("X2L_CRD_SCHEMAS", ROOT.parent / "shared" / "schemas"))
with_crds = pytest.mark.skipif(
    not CRD_SCHEMAS.is_dir() and "CI" not in os.environ,  # in CI they must be there
    reason=f"custom objects are not checked: there are no CRD schemas in {CRD_SCHEMAS}; X2L_CRD_SCHEMAS names a folder",
)


@pytest.fixture(autouse=True, scope="module")
def _definitions_are_read_once():
    """They are megabytes, and are read for every object otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes, "schema_contents", cache(kubernetes.schema_contents))
        yield


@cache
def crds() -> dict[tuple[str, str], Object]:
    """Schemas by (apiVersion, kind), closed: what they do not name is not allowed."""
    found = {}
    for file in sorted(CRD_SCHEMAS.glob("*.json")):
        crd = json.loads(file.read_text())
        schema = _closed(crd["schema"])
        schema["properties"]["metadata"] = {"type": "object"}  # that of every object; checked with a core kind
        found[f"{crd['group']}/{crd['version']}", crd["kind"]] = schema
    return found


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    open_ = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(schema.get("properties"), dict) and "type" in schema and not open_:
        closed.setdefault("additionalProperties", False)
    return closed


def is_custom(thing: Object) -> bool:
    group = thing["apiVersion"].rpartition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


def core_check(thing: Object, version: str) -> None:
    kubernetes.validate(thing, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_core_objects_and_pods_are_valid(overlay, version):
    things = objects(overlay)
    for thing in things:
        if is_custom(thing):  # at least its name and labels
            core_check({"apiVersion": "v1", "kind": "ConfigMap", "metadata": thing["metadata"]}, version)
        else:
            core_check(thing, version)
    for pod in pods(things):
        core_check({"apiVersion": "v1", "kind": "Pod", **pod.template}, version)


@with_crds
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_custom_objects_are_valid(overlay):
    custom = [thing for thing in objects(overlay) if is_custom(thing)]
    assert custom
    for thing in custom:
        schema = crds().get((thing["apiVersion"], thing["kind"]))
        assert schema is not None, f"{title(thing)}: no schema of it in {CRD_SCHEMAS}"
        jsonschema.Draft202012Validator(schema).validate(thing)


def test_a_wrong_word_is_noticed():
    things = objects("dev")
    claim = next(thing for thing in things if thing["kind"] == "PersistentVolumeClaim")
    claim["spec"]["accessMode"] = ["ReadWriteMany"]
    with pytest.raises(kubernetes.ValidationError, match="accessMode"):
        core_check(claim, VERSIONS[-1])


@with_crds
def test_a_wrong_word_in_a_custom_object_is_noticed():
    service = next(thing for thing in objects("dev") if thing["kind"] == "RayService")
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.Draft202012Validator(crds()[service["apiVersion"], "RayService"]).validate(service)
