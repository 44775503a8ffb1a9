"""The stores as rendered: the real server takes the configuration; every user may do what its role needs, no more."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from tests.manifests.kubectl import ROOT
from tests.manifests.rendered import OVERLAYS, named, objects, pods
from tests.manifests.valkeys import Store, client, expanded, running
from x2l_cluster.kv.evict import Limits
from x2l_cluster.kv.evictor import Evictor
from x2l_cluster.kv.open import open_kv, split_tiers
from x2l_cluster.kv.remote import RemoteKV
from x2l_cluster.state.open import open_state
from x2l_cluster.types import BlockKey, Kind, Recipe, VideoInfo

ROLES = ("gateway", "prefill", "answer", "janitor")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_state_acknowledges_what_is_on_its_disk(overlay, tmp_path):
    with running(overlay, "state", tmp_path) as store:
        config = client(store.socket, "metrics").config_get("*")
    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "always"
    assert config["maxmemory-policy"] == "noeviction"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kv_never_evicts_and_writes_nothing_to_disk(overlay, tmp_path):
    with running(overlay, "kv", tmp_path) as store:
        config = client(store.socket, "metrics").config_get("*")
    assert config["appendonly"] == "no"
    assert config["save"] == ""
    assert config["maxmemory-policy"] == "noeviction"
    assert int(config["io-threads"]) > 1
    assert {config[f"lazyfree-lazy-{when}"] for when in ("expire", "server-del", "user-del", "user-flush")} == {"yes"}
    hard = config["client-output-buffer-limit"].split()[1:3]
    assert all(int(limit) > 0 for limit in hard), "a reader that does not read must not fill the server"


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    with running("dev", "state", tmp_path_factory.mktemp("state")) as store:
        yield store.socket


@pytest.fixture(scope="module")
def kv(tmp_path_factory):
    with running("dev", "kv", tmp_path_factory.mktemp("kv")) as store:
        yield store.socket


@pytest.mark.parametrize("store", ["state", "kv"])
def test_nobody_gets_in_without_a_password(store, request):
    socket = request.getfixturevalue(store)
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)).ping()
    template = named(objects("dev"), "ConfigMap", f"valkey-{store}")["data"]["users.tmpl"]
    users = [line.split()[0] for line in template.splitlines() if not line.startswith("#")]
    assert len(users) >= 5
    for user in users:
        with pytest.raises(redis.AuthenticationError):
            client(socket, user, "wrong").ping()
        assert client(socket, user).ping()


@pytest.mark.parametrize("user", ["gateway", "worker", "janitor"])
def test_the_service_works_on_its_keys_in_state_and_on_no_others(state, user):
    ours = client(state, user)
    assert ours.eval("return redis.call('INCR', KEYS[1])", 1, "x2l:st:{local}:epoch") > 0
    assert ours.publish("x2l:jobs:told", "x") == 0
    for forbidden in (
        lambda: ours.get("RAYsomething"),
        lambda: ours.config_set("appendfsync", "no"),
        ours.flushall,
        lambda: ours.keys("*"),
        ours.acl_list,
        ours.shutdown,
    ):
        with pytest.raises(redis.ResponseError):
            forbidden()


def test_ray_sees_its_tables_and_no_jobs(state):
    ray = client(state, "ray")
    ray.hset("RAYcluster@KV", "a", "b")
    with pytest.raises(NoPermissionError):
        ray.get("x2l:st:{local}:epoch")


def test_workers_keep_blocks_in_kv(kv):
    worker = client(kv, "worker")
    with worker.pipeline(transaction=True) as batch:
        batch.set("x2l:kv:{local/v}/b", b"blob").hset("x2l:kv:{local/v}", "b", 4).execute()
    assert worker.get("x2l:kv:{local/v}/b") == b"blob"
    with pytest.raises(NoPermissionError):
        worker.set("x2l:st:{local}:epoch", 1)


def test_the_janitor_deletes_blocks_and_writes_none(kv):
    client(kv, "worker").hset("x2l:kv:{local/w}", "b", 4)
    janitor = client(kv, "janitor")
    assert janitor.eval("return redis.call('HDEL', KEYS[1], ARGV[1])", 1, "x2l:kv:{local/w}", "b") == 1
    with pytest.raises(NoPermissionError):
        janitor.set("x2l:kv:{local/w}/b", b"blob")


@pytest.mark.parametrize("store", ["state", "kv"])
def test_the_exporter_reads_figures_and_no_keys(store, request):
    metrics = client(request.getfixturevalue(store), "metrics")
    assert metrics.info()["redis_version"]
    for forbidden in (lambda: metrics.get("x2l:x"), metrics.scan, lambda: metrics.set("x2l:x", 1)):
        with pytest.raises(NoPermissionError):
            forbidden()


def until(holds) -> None:
    """Polls what other processes bring about."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_standby_follows_and_takes_no_writes_of_its_own(tmp_path):
    with running("ha", "state", tmp_path) as store:
        primary, standby = store.places
        worker = client(primary.socket, "worker")
        for number in range(100):
            worker.set(f"x2l:st:{{local}}:{number}", number)
        until(lambda: client(standby.socket, "metrics").info()["master_link_status"] == "up")
        assert worker.execute_command("WAIT", 1, 10_000) == 1
        follower = client(standby.socket, "worker")
        with pytest.raises(redis.ReadOnlyError):
            follower.set("x2l:st:{local}:0", "two primaries")
        assert follower.get("x2l:st:{local}:99") == b"99"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_urls_of_every_role_open_the_stores(overlay, tmp_path):
    """As the pods are told them, against the stores as they run: a state, and tiers that keep a block."""
    with running(overlay, "state", tmp_path / "state") as state, running(overlay, "kv", tmp_path / "kv") as kv:
        if len(kv.places) > 1:
            until(lambda: all(is_whole(place.socket) for place in kv.places))
        for role in ROLES:
            urls = told(overlay, role, tmp_path)
            with open_state(urls["X2L_STATE"].replace("@valkey-state:", f"@{state.places[0].address}:")) as opened:
                assert opened.bind("local", f"content-of-{role}", role) == role
            with open_kv(urls["X2L_STORE"].replace("@valkey-kv:", f"@{kv.places[0].address}:")) as tiers:
                if role != "janitor":
                    for chunk in range(8):  # so that every server has some
                        tiers.put(block(role, chunk), b"blob")
                        assert bytes(tiers.get(block(role, chunk))) == b"blob"
                assert tiers.delete_video("local", role) == (0 if role == "janitor" else 32)


@pytest.mark.parametrize("overlay", ["dev", "ha"])
def test_the_janitor_evicts_what_workers_keep(overlay, tmp_path):
    with running(overlay, "kv", tmp_path / "kv") as kv:
        until(lambda: len(kv.places) == 1 or all(is_whole(place.socket) for place in kv.places))
        ours, theirs = (served(told(overlay, role, tmp_path)["X2L_STORE"], kv) for role in ("prefill", "janitor"))
        with RemoteKV(ours) as worker, RemoteKV(theirs) as janitor:
            for chunk in range(8):
                worker.put(block(f"v{chunk}", chunk), b"blob")
            assert Evictor(janitor, Limits(budget_bytes=1)).run() == 32, "all that is fine goes"
            with worker.turn() as free:
                assert free is not None, "it left its turn to others"
            assert janitor.held_bytes() == 0


@pytest.mark.parametrize("overlay", ["dev", "ha"])
def test_the_janitor_makes_its_pass_as_it_is_started(overlay, tmp_path):
    """Its command in its environment, on stores that hold what it should delete, with its own rights."""
    (pod,) = (pod for pod in pods(objects(overlay)) if pod.component == "janitor")
    (container,) = pod.containers
    with running(overlay, "state", tmp_path / "state") as state, running(overlay, "kv", tmp_path / "kv") as kv:
        until(lambda: len(kv.places) == 1 or all(is_whole(place.socket) for place in kv.places))
        urls, env = (
            {name: at(value, state, kv) for name, value in told(overlay, role, tmp_path).items()}
            for role in ("prefill", "janitor")
        )
        info = VideoInfo(duration_s=8.0, width=1, height=1, fps=1.0)
        with open_state(urls["X2L_STATE"]) as manifests, open_kv(urls["X2L_STORE"]) as tiers:
            recipe = manifests.begin("local", "gone", Recipe(family="tiny", weights="w"), info).recipe.digest
            fine = [replace(block("gone", chunk), recipe=recipe) for chunk in range(8)]
            blobs = [*fine, *(replace(key, kind=Kind.H) for key in fine)]
            for key in blobs:
                tiers.put(key, b"blob")
            manifests.delete("local", "gone")
        words = [sys.executable, *container["command"][1:], "--json"]
        env |= {"PYTHONPATH": str(ROOT), "X2L_SOURCES": str(tmp_path / "sources")}
        done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        report = json.loads(done.stdout)
        assert (done.returncode, report["problems"], report["orphans"]) == (0, {}, len(blobs)), done.stderr
        with open_kv(urls["X2L_STORE"]) as tiers:
            assert list(tiers.keys("local", "gone")) == []


def at(url: str, state: Store, kv: Store) -> str:
    """The stores, where they are here."""
    return url.replace("@valkey-state:", f"@{state.places[0].address}:").replace(
        "@valkey-kv:", f"@{kv.places[0].address}:"
    )


def served(url: str, kv: Store) -> str:
    """The server among a role's tiers, where it is here."""
    return next(u for u in split_tiers(url) if "@valkey-kv:" in u).replace("@valkey-kv:", f"@{kv.places[0].address}:")


def is_whole(socket: Path) -> bool:
    """Whether a server of the kv cluster sees all slots served, and serves its own."""
    seen = client(socket, "join").cluster("INFO")
    return seen["cluster_state"] == "ok" and seen["cluster_slots_ok"] == "16384"


def told(overlay: str, role: str, folder: Path) -> dict[str, str]:
    """The environment of a role; folders are made here, and TLS is left out as in the servers."""
    pod = next(pod for pod in pods(objects(overlay)) if pod.component == role)
    plain = {"VALKEY_SCHEME": "valkey", "VALKEY_TLS": "", "ARENA_BYTES": str(16 << 20)}
    found = expanded(pod.spec["containers"][0]["env"], plain)
    found["X2L_STORE"] = found["X2L_STORE"].replace("/var/lib/x2l", str(folder)).replace("/dev/shm", str(folder))
    return found


def block(video: str, chunk: int) -> BlockKey:
    return BlockKey(tenant="local", video=video, recipe="r", epoch=1, kind=Kind.L, chunk=chunk, stripe=0)
