"""The Serve configuration as rendered runs on a local Ray cluster, over the stores as rendered.

One node a group, with that group's environment and resources; the configuration is handed to Ray as KubeRay does it.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.engines import SMALL, mosaic
from tests.manifests.nodes import Machine
from tests.manifests.rendered import named, objects
from tests.manifests.test_ray import config
from tests.manifests.valkeys import Store, running
from tests.ray_cluster import ray_cluster
from x2l_cluster.client import X2L
from x2l_cluster.messages import JobState

OVERLAY = "dev"
QUESTION = "What code is shown with the red star?"
START_S = 180.0


@dataclass
class Deployed:
    """The cluster and what it serves."""

    url: str
    cluster: Any
    machine: Machine
    kv: ExitStack
    nodes: dict[str, Any]

    def add(self, component: str) -> None:
        self.nodes[component] = self.cluster.add_node(**self.machine.node(component))

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=10.0)

    def until(self, path: str, good: Any) -> httpx.Response:
        end_s = time.monotonic() + START_S
        while True:
            try:
                seen = self.get(path)
                if good(seen):
                    return seen
            except httpx.TransportError as error:
                seen = error
            assert time.monotonic() < end_s, (seen, getattr(seen, "text", ""), self.standing())
            time.sleep(0.1)

    def standing(self) -> object:
        return httpx.get(self.serve, timeout=10.0).json()["applications"]

    @property
    def serve(self) -> str:
        """Where the head takes configurations."""
        return f"http://{self.cluster.webui_url}/api/serve/applications/"

    def scraped(self) -> list[str]:
        """Series of all nodes, as Prometheus gets them."""
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        texts = [httpx.get(f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics").text for n in nodes]
        return [line for text in texts for line in text.splitlines() if not line.startswith("#")]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Iterator[Deployed]:
    """Everything but a node that could answer."""
    folder = tmp_path_factory.mktemp("machine")
    with ExitStack() as stack, ExitStack() as kv_life:
        state = stack.enter_context(running(OVERLAY, "state", folder / "state"))
        kv: Store = kv_life.enter_context(running(OVERLAY, "kv", folder / "kv"))
        machine = Machine(overlay=OVERLAY, state=state, kv=kv, folder=folder)
        cluster = stack.enter_context(ray_cluster(workers=0, dashboard=True))
        made = Deployed(url=f"http://127.0.0.1:{free_port()}", cluster=cluster, machine=machine, kv=kv_life, nodes={})
        for component in ("gateway", "prefill"):
            made.add(component)
        written = config(OVERLAY)
        written["http_options"]["port"] = int(made.url.rpartition(":")[2])
        answer = httpx.put(made.serve, json=written, timeout=60.0)
        assert answer.status_code == 200, answer.text
        yield made


@pytest.fixture(scope="module")
def answering(deployed) -> Deployed:
    deployed.add("answer")
    deployed.until("/readyz", lambda seen: seen.status_code == 200)
    return deployed


def test_it_lives_and_is_not_ready_before_a_model_is_loaded(deployed):
    deployed.until("/livez", lambda seen: seen.status_code == 200)
    ready = deployed.get("/readyz")
    assert (ready.status_code, ready.json()["model_loaded"], ready.json()["answering"]) == (503, False, False)


def test_a_video_is_indexed_and_asked_about(answering, tmp_path):
    assert answering.get("/readyz").json() == {
        "model_loaded": True,
        "answering": True,
        "indexing": True,
        "degraded": [],
    }
    with X2L(answering.url) as x2l:
        job = x2l.wait(x2l.index(mosaic(tmp_path / "film.mp4", 12), video="film", recipe=SMALL).id)
        assert job.state is JobState.READY, job.problem
        (part,) = x2l.ask(QUESTION, ["film"], detail="k=2").parts
        assert part.completed and not part.completed.degraded
        assert {evidence.tier for evidence in part.completed.answer.evidence} <= {"host", "remote"}
        assert x2l.search(QUESTION).searched == 1


def test_what_its_processes_count_is_scraped_from_their_nodes_under_its_own_name(answering):
    (endpoint,) = named(objects("gpu"), "PodMonitor", "x2l-ray")["spec"]["podMetricsEndpoints"]
    rules = endpoint["metricRelabelings"]
    wanted = {"x2l_questions_total", "x2l_ttft_seconds_bucket", "x2l_requests_total", "x2l_chunks_sealed_total"}
    wanted |= {"x2l_jobs"}
    end_s = time.monotonic() + 60.0
    while not wanted <= (seen := {renamed(line, rules) for line in answering.scraped()}):
        assert time.monotonic() < end_s, wanted - seen
        time.sleep(0.5)


def test_a_prefill_node_that_is_told_to_go_loses_no_job(answering, tmp_path):
    with X2L(answering.url) as x2l:
        job = x2l.index(mosaic(tmp_path / "long.mp4", 120, seed=3), video="long", recipe=SMALL)
        while not (seen := x2l.job(job.id)).chunks_done:
            assert not seen.state.final, seen.problem
            time.sleep(0.02)
        answering.cluster.remove_node(answering.nodes.pop("prefill"))  # SIGTERM to all its processes
        answering.add("prefill")
        done = x2l.wait(job.id)
        assert done.state is JobState.READY, done.problem
        chunks = x2l.chunks("long")
        assert [chunk.index for chunk in chunks] == list(range(30))


def test_the_janitor_does_its_rounds(answering):
    command, environment = answering.machine.process("janitor")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with X2L(answering.url) as x2l:
        assert {video.id for video in x2l.videos()} == {"film", "long"}, "nobody's time is over"
        assert x2l.ask(QUESTION, ["film"], detail="fine").parts[0].completed.degraded is False


def test_without_kv_it_is_ready_and_says_what_is_amiss(answering):
    answering.kv.close()
    ready = answering.until("/readyz", lambda seen: seen.json()["degraded"])
    assert (ready.status_code, ready.json()["answering"]) == (200, True)
    assert any(told.startswith("kv: ") for told in ready.json()["degraded"])
    with X2L(answering.url) as x2l:
        (part,) = x2l.ask(QUESTION, ["film"], detail="fine").parts
        assert part.completed


def renamed(line: str, rules: list[dict[str, Any]]) -> str:
    """The name of a series, after what Prometheus is told to do with names."""
    name = re.split(r"[{ ]", line, maxsplit=1)[0]
    for rule in rules:
        if rule.get("targetLabel") == "__name__" and (found := re.fullmatch(rule["regex"], name)):
            name = found.expand(rule["replacement"].replace("$", "\\"))
    return name


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
