"""What Ray says of the manifests: it takes the Serve configuration, and its head keeps its tables in the state."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.manifests.rendered import OVERLAYS, Object, named, objects
from tests.manifests.valkeys import client, password_of, running


def config(overlay: str) -> Object:
    written: Object = yaml.safe_load(named(objects(overlay), "RayService", "x2l")["spec"]["serveConfigV2"])
    return written


@pytest.fixture(scope="module")
def serve():
    """Takes a configuration as Serve does, which KubeRay gives it; but Serve passes over words that it has not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are written in an older Pydantic's way
        from ray.serve.config import AutoscalingConfig
        from ray.serve.schema import DeploymentSchema, ServeDeploySchema

    def take(written: Object) -> None:
        words = {
            word for application in written["applications"] for part in application["deployments"] for word in part
        }
        if unknown := words - set(DeploymentSchema.model_fields):
            raise ValueError(f"unknown words: {unknown}")
        for application in ServeDeploySchema.model_validate(written).applications:
            (deployment,) = application.deployments
            assert deployment.name == application.name
            assert deployment.ray_actor_options.resources
            if isinstance(deployment.autoscaling_config, dict):
                AutoscalingConfig.model_validate(deployment.autoscaling_config)

    return take


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_serve_takes_the_configuration(serve, overlay):
    serve(config(overlay))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"max_queued": 3}, "unknown words"),
        ({"autoscaling_config": {"min_replicas": 3, "max_replicas": 1}}, "max_replicas"),
        ({"max_ongoing_requests": "many"}, "max_ongoing_requests"),
    ],
)
def test_serve_notices_what_it_cannot_take(serve, change, why):
    broken = config("dev")
    broken["applications"][0]["deployments"][0] |= change
    with pytest.raises(ValueError, match=why):
        serve(broken)


def test_a_head_keeps_its_tables_in_the_state_as_its_own_user(tmp_path):
    cluster = named(objects("dev"), "RayService", "x2l")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    user = cluster["redisUsername"]["value"]
    password = password_of(cluster["redisPassword"]["valueFrom"]["secretKeyRef"]["key"])
    with running("dev", "state", tmp_path) as state, head(f"{state.places[0].address}:6379", user, password) as process:
        tables = client(state.socket, user, password)
        deadline = time.monotonic() + 60
        while b"RAYx2l@NODE" not in set(tables.scan_iter("RAY*")):
            assert process.poll() is None, "Ray has ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)


@contextmanager
def head(address: str, user: str, password: str) -> Iterator[subprocess.Popen[bytes]]:
    """A head as KubeRay starts it, on loopback and without what it does not need here."""
    ray = Path(sys.executable).with_name("ray")
    words = ["start", "--head", "--block", "--num-cpus=0", "--include-dashboard=false", f"--port={free_port()}"]
    words += ["--node-ip-address=127.0.0.1", "--object-store-memory=80000000", "--disable-usage-stats"]
    words += [f"--redis-username={user}", f"--redis-password={password}"]
    environment = os.environ | {
        "RAY_REDIS_ADDRESS": address,
        "RAY_external_storage_namespace": "x2l",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    with (
        tempfile.TemporaryDirectory(
            prefix="ray", dir="/tmp", ignore_cleanup_errors=True
        ) as folder,  # its sockets' names are short
        subprocess.Popen(
            [ray, *words, f"--temp-dir={folder}"], env=environment, start_new_session=True, stdout=subprocess.DEVNULL
        ) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)  # it ends what it started
            process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
