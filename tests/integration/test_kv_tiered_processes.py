"""Real processes of one node over one arena and a real server: each block is fetched once, whoever dies or stops."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from tests.arena import KEY, in_shared_memory
from tests.engines import SMALL, engine, mosaic
from tests.integration.tiered_user import BLOBS
from tests.tiers import KEYS, Place, block, soon
from x2l_cluster.engine import Generation
from x2l_cluster.errors import BlockMissing, StoreUnavailable
from x2l_cluster.kv.host import HostKV
from x2l_cluster.kv.open import open_kv
from x2l_cluster.kv.tiered import TieredKV, ladder
from x2l_cluster.kv.tiered.store import Policy
from x2l_cluster.types import BlockKey, Kind, Tier

H = replace(KEY, kind="h")
BUDGET = 32 << 20


@pytest.fixture
def arena() -> Iterator[Path]:
    with in_shared_memory() as made:
        yield made


def url_of(arena: Path, valkey: str, folder: Path) -> str:
    return f"tiers:host:{arena}?budget={BUDGET}|{valkey}|disk:{folder}"


def tiered(arena: Path, slow: Place, **policy: float) -> TieredKV:
    host = HostKV(arena, budget_bytes=BUDGET)
    return TieredKV(ladder([host, slow]), node=host.node, policy=Policy(**policy))  # type: ignore[arg-type]


def reads_of(valkey: str) -> int:
    """GETs the server has served since it started, by its own count."""
    with redis.Redis.from_url(valkey) as client:
        return int(client.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"])


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def said(one: subprocess.Popen[str]) -> str:
    assert one.stdout is not None
    return one.stdout.readline().strip()


def tell(one: subprocess.Popen[str]) -> None:
    assert one.stdin is not None
    one.stdin.write("\n")
    one.stdin.flush()


# --- each block once ------------------------------------------------------------------------------------------------

READ = """
import random, sys
from concurrent.futures import ThreadPoolExecutor
from tests.tiers import KEYS, block
from x2l_cluster.kv.open import open_kv

def question(seed):
    plan = random.Random(seed).sample(KEYS, len(KEYS))
    return all(store.get(key) == block(key) for key in plan)

with open_kv(sys.argv[1]) as store, ThreadPoolExecutor(25) as pool:
    print("ready", flush=True)
    sys.stdin.readline()
    print(all(pool.map(question, range(25))), flush=True)
"""


def test_a_hundred_readers_in_four_processes_fetch_each_block_once(
    arena: Path, empty_valkey: str, tmp_path: Path
) -> None:
    url = url_of(arena, empty_valkey, tmp_path)
    with open_kv(url) as store:
        for key in KEYS:
            store.put(key, block(key))
    before = reads_of(empty_valkey)
    with ExitStack() as stack:
        readers = [stack.enter_context(process(READ, url)) for _ in range(4)]
        assert [said(one) for one in readers] == ["ready"] * 4
        for one in readers:
            tell(one)
        assert [said(one) for one in readers] == ["True"] * 4
    assert reads_of(empty_valkey) - before == len(KEYS)


ASK = """
import sys
from concurrent.futures import ThreadPoolExecutor
from tests.engines import engine
from x2l_cluster.engine import Generation

def ask(n):
    answer = x2l.ask(sys.argv[2], f"What is shown in scene {n}?", detail="fine", generation=Generation(max_tokens=1))
    return not answer.degraded

with engine(sys.argv[1], cache_bytes=0) as x2l, ThreadPoolExecutor(34) as pool:
    print("ready", flush=True)
    sys.stdin.readline()
    print(all(pool.map(ask, range(34))), flush=True)
"""


@pytest.mark.parametrize("processes", [1, 3])
def test_a_hundred_questions_about_a_video_fetch_each_fine_block_once(
    arena: Path, empty_valkey: str, tmp_path: Path, processes: int
) -> None:
    """As threads of one process and as several processes of a node; nothing is kept hot on the device."""
    url = url_of(arena, empty_valkey, tmp_path / "store")
    with engine(url, cache_bytes=0) as x2l:
        manifest = x2l.index(mosaic(tmp_path / "film.mp4", seconds=20), **SMALL)
        x2l.stores.kv.flush()  # type: ignore[attr-defined]
        before = reads_of(empty_valkey)
        if processes == 1:

            def ask(n: int) -> set[Tier]:
                answer = x2l.ask(
                    manifest, f"What is shown in scene {n}?", detail="fine", generation=Generation(max_tokens=1)
                )
                assert not answer.degraded
                assert len(answer.evidence) == len(manifest.chunks)
                return {evidence.tier for evidence in answer.evidence}

            with ThreadPoolExecutor(100) as pool:
                tiers = set.union(*pool.map(ask, range(100)))
            assert tiers <= {Tier.REMOTE, Tier.HOST, Tier.DEVICE}
            assert {evidence.tier for evidence in x2l.ask(manifest, "?", detail="fine").evidence} == {Tier.HOST}
        else:
            with ExitStack() as stack:
                asking = [stack.enter_context(process(ASK, url, manifest.video)) for _ in range(processes)]
                assert [said(one) for one in asking] == ["ready"] * processes
                for one in asking:
                    tell(one)
                assert [said(one) for one in asking] == ["True"] * processes
        fine = sum(Kind.L in row.blocks for row in manifest.chunks)
        assert fine == 5
        assert reads_of(empty_valkey) - before == fine


# --- who dies or stops ----------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from tests.arena import KEY
from x2l_cluster.kv.host import HostKV

with HostKV(Path(sys.argv[1]), budget_bytes=1 << 20) as host:
    if sys.argv[2] == "turn":
        with host.node.turn(KEY, 30) as mine:
            print(mine, flush=True)
            sys.stdin.read()
    else:
        print(host.node.enter(KEY.tenant, KEY.video), flush=True)
        sys.stdin.read()
"""


def holder(arena: Path, what: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return process(HOLD, arena, what)


def test_a_turn_ends_with_its_holder(arena: Path) -> None:
    slow = Place(Tier.DISK)
    slow.put(KEY, block())
    with tiered(arena, slow, deadline_s=60) as store, holder(arena, "turn") as other, ThreadPoolExecutor(1) as pool:
        assert said(other) == "True"
        reading = pool.submit(store.get, KEY)
        soon(lambda: len(store._flights) == 1)
        assert not slow.got
        other.kill()
        assert reading.result(30) == block()


def test_what_another_process_has_brought_meanwhile_is_not_fetched_again(arena: Path) -> None:
    slow = Place(Tier.DISK)
    slow.put(KEY, block())
    with tiered(arena, slow, deadline_s=60) as store, holder(arena, "turn") as other, ThreadPoolExecutor(1) as pool:
        assert said(other) == "True"
        reading = pool.submit(store.fetch, KEY)
        soon(lambda: len(store._flights) == 1)
        with HostKV(arena, budget_bytes=BUDGET) as host:
            host.put(KEY, block())
        other.kill()
        assert reading.result(30).tier is Tier.HOST
        assert not slow.got


def test_a_stopped_process_is_waited_for_within_the_deadline_and_then_left(arena: Path) -> None:
    slow = Place(Tier.DISK)
    slow.put(KEY, block())
    with tiered(arena, slow, deadline_s=0.2) as store, holder(arena, "turn") as other:
        assert said(other) == "True"
        other.send_signal(signal.SIGSTOP)
        assert store.get(KEY) == block()


def test_deleting_a_video_waits_for_what_other_processes_may_bring_of_it(arena: Path) -> None:
    slow = Place(Tier.DISK)
    with tiered(arena, slow, deadline_s=60) as store, holder(arena, "enter") as other, ThreadPoolExecutor(1) as pool:
        store.put(H, block(H))
        store.flush()
        assert said(other) == "True"
        deleting = pool.submit(store.delete_video, "ada", "v1")
        soon(lambda: not slow.has(H))
        with HostKV(arena, budget_bytes=BUDGET) as host:
            host.put(H, block(H))  # the other's last word
        assert deleting.running()
        other.kill()
        assert deleting.result(30) == len(block(H))
        with pytest.raises(BlockMissing):
            store.get(H)
        assert list(store.keys("ada", "v1")) == []


def test_who_is_stopped_while_bringing_blocks_is_named_when_their_video_is_deleted(arena: Path) -> None:
    slow = Place(Tier.DISK)
    with tiered(arena, slow, deadline_s=0.1) as store, holder(arena, "enter") as other:
        store.put(H, block(H))
        store.flush()
        assert said(other) == "True"
        other.send_signal(signal.SIGSTOP)
        with pytest.raises(StoreUnavailable, match="delete the video again"):
            store.delete_video("ada", "v1")
        assert list(store.keys("ada", "v1")) == []  # all the same
        other.kill()
        other.wait()
        assert store.delete_video("ada", "v1") == 0


def test_nothing_is_brought_into_a_video_that_is_being_cleared(arena: Path) -> None:
    with HostKV(arena, budget_bytes=BUDGET) as mine, HostKV(arena, budget_bytes=BUDGET) as theirs:
        with mine.node.alone("ada", "v1", 1):
            assert [node.enter("ada", "v1") for node in (mine.node, theirs.node)] == [False, False]
            assert theirs.node.enter("ada", "v2")
        assert theirs.node.enter("ada", "v1")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_the_turns_of_a_process_do_not_live_on_in_its_children(arena: Path) -> None:
    with HostKV(arena, budget_bytes=BUDGET) as host:
        with host.node.turn(KEY, 1) as mine:
            assert mine
            read, write = os.pipe()
            child = os.fork()
            if not child:
                os.close(write)
                os.read(read, 1)  # until the parent lets go
                os._exit(0)
        host.close()
        try:
            with HostKV(arena, budget_bytes=BUDGET) as again, again.node.turn(KEY, 0.5) as mine:
                assert mine
        finally:
            os.close(write)
            os.close(read)
            os.waitpid(child, 0)


# --- at random ------------------------------------------------------------------------------------------------------


@contextmanager
def users(url: str, count: int, seed: int, writes: float) -> Iterator[list[subprocess.Popen[str]]]:
    with ExitStack() as stack:
        yield [stack.enter_context(user(url, seed + n, writes)) for n in range(count)]


def user(url: str, seed: int, writes: float) -> AbstractContextManager[subprocess.Popen[str]]:
    return process(
        "import runpy; runpy.run_module('tests.integration.tiered_user', run_name='__main__')", url, seed, writes
    )


def places(store: TieredKV) -> dict[Tier, set[BlockKey]]:
    return {rung.store.tier: set(rung.store.keys("ada", "v1")) for rung in store._rungs}


def test_what_is_deleted_stays_deleted_whoever_is_reading_it(arena: Path, empty_valkey: str, tmp_path: Path) -> None:
    url = url_of(arena, empty_valkey, tmp_path)
    with open_kv(url) as store, users(url, 2, seed=1, writes=0.0) as readers:
        assert isinstance(store, TieredKV)
        for _ in range(12):
            for key, blob in BLOBS.items():
                store.put(key, blob)
            for one in readers:
                assert said(one) == "round"
            store.delete_video("ada", "v1")
            assert not any(places(store).values())
        for one in readers:
            assert said(one) == "round"
        assert not any(places(store).values())


def kill_and_go_on(arena: Path, valkey: str, folder: Path, seed: int) -> None:
    """Readers and writers die at random; whoever lives sees sound blobs, and nothing is left at the end."""
    dice, url = random.Random(seed), url_of(arena, valkey, folder)
    with ExitStack() as stack:
        running = [stack.enter_context(user(url, seed * 100 + n, 0.1)) for n in range(3)]
        for turn in range(3):
            for one in running:
                assert said(one) == "round"
            victim = dice.randrange(3)
            running[victim].kill()
            running[victim].wait()
            running[victim] = stack.enter_context(user(url, seed * 100 + 10 + turn, 0.1))
        for one in running:
            assert said(one) == "round"
            assert one.poll() is None
            one.kill()
            one.wait()
    with open_kv(url) as store:
        assert isinstance(store, TieredKV)
        for key in store.keys("ada", "v1"):
            assert store.get(key) == BLOBS[key]
        store.delete_video("ada", "v1")
        assert not any(places(store).values())


def test_processes_see_sound_blocks_whoever_dies(arena: Path, empty_valkey: str, tmp_path: Path) -> None:
    kill_and_go_on(arena, empty_valkey, tmp_path, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 32))
def test_processes_see_sound_blocks_whoever_dies_for_long(
    arena: Path, empty_valkey: str, tmp_path: Path, seed: int
) -> None:
    kill_and_go_on(arena, empty_valkey, tmp_path, seed)
