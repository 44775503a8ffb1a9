"""Alerts and dashboards: every metric in them is one that somebody exports, every alert says what to do."""

from __future__ import annotations

import json
import re

import prometheus_client
import pytest

import x2l_cluster.metrics
from tests.manifests.kubectl import ROOT
from tests.manifests.rendered import Object, named, objects, pods

FOREIGN = {
    # Prometheus, the kubelet
    "up",
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
    # Ray
    "ray_cluster_active_nodes",
    "ray_cluster_pending_nodes",
    "ray_node_gpus_utilization",
    "ray_node_mem_used",
    # redis_exporter
    "redis_aof_enabled",
    "redis_aof_last_write_status",
    "redis_commands_processed_total",
    "redis_connected_clients",
    "redis_evicted_keys_total",
    "redis_memory_max_bytes",
    "redis_memory_used_bytes",
    "redis_net_output_bytes_total",
    "redis_up",
}
WORDS = {"sum", "max", "avg", "by", "rate", "increase", "absent", "histogram_quantile", "and", "or"}
OURS = "x2l_"


def exported() -> set[str]:
    """Names of series that the code exports, with the endings of counters and histograms."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    assert x2l_cluster.metrics.LIVE
    families = prometheus_client.REGISTRY.collect()
    return {family.name + end for family in families for end in endings.get(family.type, ()) if OURS in family.name}


def alerts() -> list[Object]:
    groups = named(objects("gpu"), "PrometheusRule", "x2l")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboards() -> dict[str, Object]:
    data = named(objects("gpu"), "ConfigMap", "x2l-dashboards")["data"]
    return {name: json.loads(text) for name, text in data.items()}


def expressions() -> list[str]:
    panels = [panel for board in dashboards().values() for panel in board["panels"]]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [rule["expr"] for rule in alerts()] + asked


def names(expression: str) -> set[str]:
    """What of an expression are names of series: no strings, no labels, no functions."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\bby \([^)]*\)|\[[^]]*\]", "", bare)
    return set(re.findall(r"\b[a-zA-Z_]\w+", bare)) - WORDS


def test_every_metric_is_exported_by_somebody():
    asked = set().union(*map(names, expressions()))
    assert len(asked) > 40
    assert asked <= exported() | FOREIGN, asked - exported() - FOREIGN


def test_nothing_is_listed_that_nobody_asks_for():
    assert set().union(*map(names, expressions())) >= FOREIGN


def test_a_metric_that_nobody_exports_is_noticed():
    assert not names('sum by (tier) (rate(x2l_kv_raeds_total{result="hit"}[5m]))') <= exported() | FOREIGN


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alerts_say_how_bad_it_is_and_what_to_do(rule):
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"].endswith(".")
    file, anchor = rule["annotations"]["runbook"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(), re.MULTILINE)
    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings


def test_two_dashboards_with_unlike_panels():
    boards = dashboards()
    assert set(boards) == {"service.json", "tiers.json"}
    for board in boards.values():
        titles = [panel["title"] for panel in board["panels"]]
        assert len(set(titles)) == len(titles) > 10
        assert len({panel["id"] for panel in board["panels"]}) == len(titles)


def test_what_is_scraped_is_a_port_of_the_pods():
    things = objects("gpu")
    for monitor in (thing for thing in things if thing["kind"] == "PodMonitor"):
        (term,) = monitor["spec"]["selector"]["matchExpressions"]
        ports = {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]}
        for component in term["values"]:
            pod = next(pod for pod in pods(things) if pod.component == component)
            assert ports <= {port["name"] for c in pod.containers for port in c.get("ports", ())}, component
