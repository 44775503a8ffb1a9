"""The pods of the two stores as processes: each container's command and environment as rendered, the real server.

Every pod gets an address of its own in 127.0.0.0/8, so that all of them listen on the port that is written down. The
server in the wheel is built without TLS: the words that are about it are left out.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.manifests.rendered import Object, named, objects, pods
from x2l_cluster.kv.embedded import find_binary

_CLI = """#!{python} -I
# What valkey-cli does with these arguments, for a machine that has only the server.
import argparse, os, redis, redis.backoff, redis.retry, sys
known = argparse.ArgumentParser()
known.add_argument("-s")
known.add_argument("--user")
known.add_argument("command", nargs=argparse.REMAINDER)
told = known.parse_args()
once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
client = redis.Redis(unix_socket_path=told.s, username=told.user, password=os.environ["VALKEYCLI_AUTH"], retry=once)
client.response_callbacks.clear()
try:
    reply = client.execute_command(*told.command)
except redis.RedisError as error:
    sys.exit(str(error))
print(reply.decode() if isinstance(reply, bytes) else reply)
"""


def client(socket: Path, user: str, password: str | None = None) -> redis.Redis:
    given = password_of(user) if password is None else password
    return redis.Redis(unix_socket_path=str(socket), username=user, password=given, retry=Retry(NoBackoff(), 0))


def password_of(user: str) -> str:
    return f"password-of-{user}"


def expanded(variables: list[Object], more: Mapping[str, str]) -> dict[str, str]:
    """An environment as the kubelet makes it: ``$(NAME)`` is a variable that came before."""
    found: dict[str, str] = {}
    for variable in variables:
        name, source = variable["name"], variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            found[name] = password_of(source["secretKeyRef"]["key"])
        else:
            found[name] = more[name] if name in more else expand(variable["value"], found)
    return found


def expand(word: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a pod's paths are on this machine."""

    folder: Path
    address: str

    @property
    def socket(self) -> Path:
        return self.folder / "run/valkey/valkey.sock"

    def here(self, text: str) -> str:
        return re.sub(r"(?<![\w/])/(etc/valkey|run/valkey|run/passwords|data)\b", rf"{self.folder}/\1", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A store that runs: all its pods, in the order of their numbers."""

    name: str
    places: tuple[Place, ...]

    @property
    def socket(self) -> Path:
        return self.places[0].socket


@contextmanager
def running(overlay: str, name: str, folder: Path) -> Iterator[Store]:
    """All pods of ``valkey-{name}``, until the end of the block."""
    things = objects(overlay)
    count = named(things, "StatefulSet", f"valkey-{name}")["spec"]["replicas"]
    net = f"127.{random.randrange(1, 255)}.{random.randrange(255)}"
    places = tuple(Place(folder=folder / str(n), address=f"{net}.{n + 1}") for n in range(count))
    with ExitStack() as stack:
        for number, place in enumerate(places):
            _lay_out(things, name, place)
            stack.enter_context(_pod(things, name, number, place, places[0].address))
        yield Store(name=name, places=places)


def _lay_out(things: list[Object], name: str, place: Place) -> None:
    for inside in ("etc/valkey", "run/valkey", "run/passwords", "data", "bin"):
        (place.folder / inside).mkdir(parents=True)
    for file, text in named(things, "ConfigMap", f"valkey-{name}")["data"].items():
        (place.folder / "etc/valkey" / file).write_text(place.here(text))
    for line in named(things, "ConfigMap", f"valkey-{name}")["data"]["users.tmpl"].splitlines():
        if line and not line.startswith("#"):
            user = line.split()[0]
            (place.folder / "run/passwords" / user).write_text(password_of(user) + "\n")
    (place.folder / "bin/valkey-server").symlink_to(find_binary())
    (place.folder / "bin/valkey-cli").write_text(_CLI.format(python=sys.executable))
    (place.folder / "bin/valkey-cli").chmod(0o755)


@contextmanager
def _pod(things: list[Object], name: str, number: int, place: Place, first: str) -> Iterator[None]:
    pod = next(pod for pod in pods(things) if pod.component == f"valkey-{name}")
    users, server = pod.spec["initContainers"][0], pod.spec["containers"][0]
    subprocess.run([place.here(word) for word in users["command"]], check=True, timeout=20)
    facts = {"POD_NAME": f"valkey-{name}-{number}", "POD_IP": place.address, "SOCKET": str(place.socket)}
    facts |= {"PRIMARY_HOST": first, "FIRST": first}
    environment = expanded(server["env"], facts)
    words = [place.here(expand(word, environment)) for word in _plain(server["command"])]
    words += ["--bind", place.address, "--logfile", str(place.folder / "log")]
    path = f"{place.folder / 'bin'}:{os.environ['PATH']}"
    with subprocess.Popen(words, env={**environment, "PATH": path}, start_new_session=True) as process:
        try:
            _wait(process, place)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the script, the server, whatever it waits with


def _plain(words: list[str]) -> list[str]:
    """Without TLS."""
    return re.sub(r" --port 0 --tls-port \d+(?: --tls-\S+ \S+)*", "", " ".join(words)).split()


def _wait(process: subprocess.Popen[bytes], place: Place) -> None:
    for _ in range(200):
        try:
            if client(place.socket, "probe", "any").ping():
                return
        except (redis.ConnectionError, redis.BusyLoadingError):
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue  # it still runs
            break
    log = place.folder / "log"
    raise AssertionError(log.read_text() if log.exists() else f"it ended with {process.returncode}")
