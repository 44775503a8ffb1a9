"""The stores as rendered: the real server takes its configuration, and every user may do what its role needs, no more."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from tests.manifests.rendered import OVERLAYS, named, objects, pods
from x2l_cluster.kv.embedded import find_binary

USERS = {"state": ("gateway", "worker", "janitor", "ray", "metrics"), "kv": ("gateway", "worker", "janitor", "metrics")}


def lay_out(overlay: str, store: str, folder: Path) -> Path:
    """The pod's files, its init container run; returns its configuration, with this machine's paths in it."""
    config, passwords, run, data = (folder / name for name in ("etc", "passwords", "run", "data"))
    for place in (config, passwords, run, data):
        place.mkdir(parents=True)
    things = objects(overlay)
    for name, content in named(things, "ConfigMap", f"valkey-{store}")["data"].items():
        for place in ("/run/valkey", "/data"):
            content = content.replace(f" {place}", f" {run if 'run' in place else data}")
        (config / name).write_text(content)
    for user in USERS[store]:
        (passwords / user).write_text(f"password-of-{user}\n")
    pod = next(pod for pod in pods(things) if pod.component == f"valkey-{store}")
    users = next(container for container in pod.spec["initContainers"] if container["name"] == "users")
    places = {"/etc/valkey": config, "/run/passwords": passwords, "/run/valkey": run}
    words = [_moved(word, places) for word in users["command"]]
    subprocess.run(words, check=True, timeout=20)
    return config / "valkey.conf"


def _moved(word: str, places: dict[str, Path]) -> str:
    for place, here in places.items():
        if word.startswith(place):
            return word.replace(place, str(here), 1)
    return word


@contextmanager
def serving(overlay: str, store: str, folder: Path) -> Iterator[Path]:
    """The server runs with that configuration, on a unix socket only; yields the socket."""
    config = lay_out(overlay, store, folder)
    log = folder / "log"
    command = [str(find_binary()), str(config), "--port", "0", "--logfile", str(log)]
    with subprocess.Popen(command) as server:
        try:
            socket = folder / "run" / "valkey.sock"
            _wait(server, socket, log)
            yield socket
        finally:
            server.terminate()


def _wait(server: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    for _ in range(200):
        try:
            if client(socket, "probe", "any").ping():
                return
        except (redis.ConnectionError, redis.BusyLoadingError):
            with pytest.raises(subprocess.TimeoutExpired):  # it still runs
                server.wait(0.05)
    raise AssertionError(log.read_text())


def client(socket: Path, user: str, password: str | None = None) -> redis.Redis:
    given = f"password-of-{user}" if password is None else password
    return redis.Redis(unix_socket_path=str(socket), username=user, password=given, retry=Retry(NoBackoff(), 0))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_state_acknowledges_what_is_on_its_disk(overlay, tmp_path):
    with serving(overlay, "state", tmp_path) as socket:
        config = client(socket, "metrics").config_get("*")
    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "always"
    assert config["maxmemory-policy"] == "noeviction"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kv_never_evicts_and_writes_nothing_to_disk(overlay, tmp_path):
    with serving(overlay, "kv", tmp_path) as socket:
        config = client(socket, "metrics").config_get("*")
    assert config["appendonly"] == "no"
    assert config["save"] == ""
    assert config["maxmemory-policy"] == "noeviction"
    assert int(config["io-threads"]) > 1
    assert {config[f"lazyfree-lazy-{when}"] for when in ("expire", "server-del", "user-del", "user-flush")} == {"yes"}
    hard = config["client-output-buffer-limit"].split()[1:3]
    assert all(int(limit) > 0 for limit in hard), "a reader that does not read must not fill the server"


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    with serving("dev", "state", tmp_path_factory.mktemp("state")) as socket:
        yield socket


@pytest.fixture(scope="module")
def kv(tmp_path_factory):
    with serving("dev", "kv", tmp_path_factory.mktemp("kv")) as socket:
        yield socket


@pytest.mark.parametrize("store", ["state", "kv"])
def test_nobody_gets_in_without_a_password(store, request):
    socket = request.getfixturevalue(store)
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)).ping()
    for user in USERS[store]:
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
        lambda: ours.flushall(),
        lambda: ours.keys("*"),
        lambda: ours.acl_list(),
        lambda: ours.shutdown(),
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
    for forbidden in (lambda: metrics.get("x2l:x"), lambda: metrics.scan(), lambda: metrics.set("x2l:x", 1)):
        with pytest.raises(NoPermissionError):
            forbidden()
