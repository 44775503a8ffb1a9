"""Several real processes on one arena: they see whole blobs, and the death of any of them is nobody else's trouble."""

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

from tests.arena import KEY, PAGE, check, fill, in_shared_memory
from tests.integration.arena_user import BUDGET, KEYS, verify, work
from x2l_cluster.errors import BlockMissing, StoreFull
from x2l_cluster.kv.host import HostKV

SHORT = """
import os, sys
from dataclasses import replace
from pathlib import Path
from tests.arena import KEY, PAGE, fill
from x2l_cluster.kv.host import HostKV

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # at once, so that lines of several stay whole

store = HostKV(Path(sys.argv[1]), budget_bytes=40 * PAGE, page_bytes=PAGE)
"""
"""What the processes of these tests begin with."""


@pytest.fixture
def path() -> Iterator[Path]:
    with in_shared_memory() as made:
        yield made


def opened(path: Path) -> HostKV:
    return HostKV(path, budget_bytes=BUDGET, page_bytes=PAGE, patience_s=30)


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, *command], stdin=-1, stdout=-1, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def short(path: Path, code: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return process("-c", SHORT + code, str(path))


def said(one: subprocess.Popen[str]) -> str:
    assert one.stdout is not None
    return one.stdout.readline().strip()


def sound(store: HostKV) -> None:
    """Every blob is whole, the tables agree, and the whole arena can be had again."""
    for key in KEYS:
        try:
            with store.lease(key) as view:
                verify(key, view)
        except BlockMissing:
            continue
    with store._arena.reading() as tables:
        check(tables)
    store.put(replace(KEY, video="all"), bytes(BUDGET - 100))
    assert list(store.keys("ada", "v1")) == []
    store.delete_video("ada", "all")


def kill_and_continue(path: Path, seed: int, kills: int, users: int = 3) -> None:
    dice = random.Random(seed)
    numbers = iter(range(seed * 1000, seed * 1000 + 1000))

    def start(stack: ExitStack) -> subprocess.Popen[str]:
        return stack.enter_context(
            process("-m", "tests.integration.arena_user", str(path), str(next(numbers)), "1000000")
        )

    with ExitStack() as stack:
        running = [start(stack) for _ in range(users)]
        for _ in range(kills):
            for _ in range(dice.randint(1, 3)):  # the blow falls somewhere in the work of the next hundred rounds
                for one in running:
                    assert said(one) == "round"
            victim = dice.randrange(users)
            running[victim].kill()
            running[victim].wait()
            running[victim] = start(stack)
        for one in running:
            assert said(one) == "round"
            assert one.poll() is None
        for one in running:
            one.kill()
            one.wait()
        with opened(path) as store:
            sound(store)


def test_processes_see_whole_blobs_whoever_dies(path: Path) -> None:
    kill_and_continue(path, seed=1, kills=4)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 52))
def test_processes_see_whole_blobs_whoever_dies_for_long(path: Path, seed: int) -> None:
    kill_and_continue(path, seed, kills=8)


def test_processes_that_live_come_to_their_end(path: Path) -> None:
    with ExitStack() as stack, opened(path) as store:
        commands = [("-m", "tests.integration.arena_user", str(path), str(seed), "1500") for seed in range(3)]
        running = [stack.enter_context(process(*command)) for command in commands]
        for one in running:
            assert one.stdout is not None
            assert one.stdout.read().endswith("done\n")
            assert one.wait() == 0
        assert store.stats().rebuilt == 0
        sound(store)


def test_threads_of_one_process_see_whole_blobs(path: Path) -> None:
    with opened(path) as store:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work, store, random.Random(seed), 400, lambda word: None) for seed in range(4)]:
                done.result()
        assert store.stats().leases == 0
        assert store.stats().rebuilt == 0
        sound(store)


def test_the_lease_of_a_stopped_process_holds_and_that_of_a_dead_one_ends(path: Path) -> None:
    holding = "view = store.get(KEY); say('holding'); sys.stdin.read()"
    large = replace(KEY, chunk=1)
    with opened(path) as store, short(path, holding) as holder:
        store.put(KEY, fill(KEY, 10 * PAGE))
        assert said(holder) == "holding"
        os.kill(holder.pid, signal.SIGSTOP)
        with pytest.raises(StoreFull):
            store.put(large, bytes(35 * PAGE))
        assert store.get(KEY) == fill(KEY, 10 * PAGE)
        holder.kill()
        holder.wait()
        store.put(large, bytes(35 * PAGE))
        with pytest.raises(BlockMissing):
            store.get(KEY)


def test_a_lease_ends_with_its_process_though_a_forked_child_lives(path: Path) -> None:
    forked = """
view = store.get(KEY)
if os.fork():
    say('holding')
    sys.stdin.read()
try:
    store.get(KEY)
except Exception as error:
    say(os.getpid(), type(error).__name__, 'before a fork' in str(error))
sys.stdin.read()
"""
    with opened(path) as store:
        store.put(KEY, fill(KEY, 10 * PAGE))
        with short(path, forked) as holder:
            lines = sorted([said(holder), said(holder)])
            child, *refused = lines[0].split()
            assert (refused, lines[1]) == (["StoreUnavailable", "True"], "holding")
            with pytest.raises(StoreFull):
                store.put(replace(KEY, chunk=1), bytes(35 * PAGE))
            holder.kill()
            holder.wait()
            try:
                os.kill(int(child), 0)  # it lives
                store.put(replace(KEY, chunk=1), bytes(35 * PAGE))
            finally:
                os.kill(int(child), signal.SIGKILL)


def test_what_a_dead_writer_had_reserved_is_free_again(path: Path) -> None:
    writing = """
with store.reserve(KEY, 30 * PAGE) as room:
    room[: 10 * PAGE] = bytes(10 * PAGE)
    say('writing')
    sys.stdin.read()
"""
    with opened(path) as store, short(path, writing) as writer:
        assert said(writer) == "writing"
        with pytest.raises(StoreFull):
            store.put(replace(KEY, chunk=1), bytes(20 * PAGE))
        with pytest.raises(BlockMissing):
            store.get(KEY)
        writer.kill()
        writer.wait()
        store.put(replace(KEY, chunk=1), bytes(39 * PAGE))


def test_the_death_of_the_creator_leaves_the_arena(path: Path) -> None:
    creating = "store.put(KEY, fill(KEY, 5000)); say('made'); sys.stdin.read()"
    with short(path, creating) as creator:
        assert said(creator) == "made"
        with opened(path) as second:
            creator.kill()
            creator.wait()
            assert second.get(KEY) == fill(KEY, 5000)
            second.put(replace(KEY, chunk=1), b"abc")
    with opened(path) as third:
        assert third.get(KEY) == fill(KEY, 5000)
        assert third.get(replace(KEY, chunk=1)) == b"abc"


def test_those_who_open_at_once_share_one_arena(path: Path) -> None:
    body = """
mine = replace(KEY, chunk=int(sys.argv[2]))
store.put(mine, fill(mine, 3000))
say('put')
sys.stdin.readline()
say(all(store.get(key) == fill(key, 3000) for key in (replace(KEY, chunk=chunk) for chunk in range(4))))
"""
    wait = SHORT.replace("store =", "say('ready'); sys.stdin.readline()\nstore =")
    with ExitStack() as stack:
        running = [stack.enter_context(process("-c", wait + body, str(path), str(chunk))) for chunk in range(4)]
        for answer in ("ready", "put", "True"):
            for one in running:
                assert said(one) == answer
            for one in running:
                assert one.stdin is not None
                if answer != "True":
                    one.stdin.write("\n")
                    one.stdin.flush()


FULL = """
import os, sys
from pathlib import Path
from dataclasses import replace
from tests.arena import KEY
from x2l_cluster.errors import StoreFull
from x2l_cluster.kv.host import HostKV

place = Path(sys.argv[1])
with HostKV(place / "arena", budget_bytes=2 << 20) as store:
    store.put(KEY, bytes(100_000))
    with open(place / "hog", "wb") as hog:
        try:
            while True:
                hog.write(bytes(65536))
                hog.flush()
        except OSError:
            pass
    for refuse in (lambda: store.put(replace(KEY, chunk=1), bytes(1 << 20)), store._arena.prefault):
        try:
            refuse()
        except StoreFull as error:
            print("full", "no room left" in str(error))
    assert store.get(KEY) == bytes(100_000)
    store.put(KEY, bytes(100_000))
    os.truncate(place / "hog", 0)
    store.put(replace(KEY, chunk=1), bytes(1 << 20))
    assert store.get(replace(KEY, chunk=1)) == bytes(1 << 20)
    print("fine", store.stats().rebuilt)
"""


def test_a_full_filesystem_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """In a namespace of its own, where anybody may mount a small tmpfs."""
    inside = f'mount -t tmpfs -o size=3m none {tmp_path} && exec "$0" -c "$1" {tmp_path}'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside, sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and ("unshare" in done.stderr or "mount:" in done.stderr):
        pytest.skip(f"no small tmpfs can be mounted here: {done.stderr.strip()}")
    assert done.stdout.split("\n") == ["full True", "full True", "fine 0", ""], done.stderr
