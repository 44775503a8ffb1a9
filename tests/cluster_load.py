"""A whole service on a local Ray cluster, and load on it: everything real, everything can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import ChainMap, Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import psutil

from tests.ray_cluster import ray_cluster
from tests.services import pieces
from tests.wire import free_port
from x2l_cluster.engine import Generation, VideoEngine
from x2l_cluster.errors import X2LError
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.messages import AnswerCompleted, AnswerFailed, Job, JobEvent, JobState
from x2l_cluster.needles import make_questions, make_script
from x2l_cluster.needles.files import write_mp4
from x2l_cluster.service import Ask, IndexRequest
from x2l_cluster.service.front import FrontService
from x2l_cluster.settings import Settings
from x2l_cluster.types import ChunkRow, IndexStatus

T = TypeVar("T")
_TENANTS = 3
PATIENCE_S = 600.0
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Film:
    """A rendered video, and questions about it."""

    name: str
    tenant: str
    path: Path
    chunks: int
    questions: tuple[str, ...]


def films(folder: Path, count: int, chunks: int, *, of: str = "film") -> list[Film]:
    """Needle videos of so many chunks of the reference model, shared out among tenants; ``of`` begins all names."""
    made = []
    for number in range(count):
        script = make_script(1000 + number, duration_s=16.0 * chunks, split="eval")
        path = write_mp4(script, folder / f"{of}{number}.mp4", size=128, fps=2)
        questions = tuple(question.text for question in make_questions(script, per_kind=2))
        made.append(Film(f"{of}{number}", f"{of}s-of-{number % _TENANTS}", path, chunks, questions))
    return made


class Server:
    """A Valkey that keeps its port, and with ``durable`` its data, when it is killed and started again."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._port = free_port()
        self._flags = {"dir": str(folder), "appendonly": "yes", "appendfsync": "always"} if durable else {}
        self.url = f"redis://127.0.0.1:{self._port}" + ("?durable=true" if durable else "")
        self._server: EmbeddedValkey | None = None

    def start(self) -> None:
        self._server = EmbeddedValkey(port=self._port, flags=self._flags)
        self._server.__enter__()

    def held_bytes(self) -> int:
        import redis

        with redis.Redis.from_url(self.url) as client:
            return int(client.info("memory")["used_memory_dataset"])

    def kill(self) -> None:
        """kill -9."""
        if self._server is not None:
            self._server.close()


@dataclass
class Whole:
    """All parts of a service that runs."""

    cluster: Any
    state: Server
    kv: Server
    service: FrontService
    chosen: Mapping[str, Any]
    indexer: Any

    def prefill_pids(self) -> dict[int, bool]:
        """Processes of prefill workers that answer, and whether they are busy."""
        import ray

        from x2l_cluster.cluster import Fleet

        fleet = Fleet(self.state.url, self.chosen)
        found = {}
        for name in (*fleet.names()[0], *fleet.names()[1]):
            with suppress(ValueError, ray.exceptions.RayError):
                told = ray.get(fleet.worker(name).look.remote(), timeout=5)
                found[told.pid] = told.busy
        return found

    def answer_pids(self) -> set[int]:
        return {process.pid for process in _ray_processes() if "ServeReplica:answerer" in _title(process)}

    def kill_node(self) -> None:
        """kill -9 of all processes of a worker node at once, one that has workers of both kinds if there is one."""
        nodes = sorted(self.cluster.worker_nodes, key=lambda node: -len(_inside(node)))
        node = nodes[0]
        for process in _inside(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.cluster.remove_node(node, allow_graceful=False)


def _inside(node: Any) -> list[psutil.Process]:
    found = []
    for infos in node.all_processes.values():
        for info in infos:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(info.process.pid)
                found += [*process.children(recursive=True), process]
    return found


def _ray_processes() -> list[psutil.Process]:
    """All that this process has started, however far down."""
    return psutil.Process().children(recursive=True)


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@contextmanager
def whole(folder: Path, *, prefill: int = 2, answer: int = 2, lease_s: float = 8.0) -> Iterator[Whole]:
    """Three worker nodes, on which any two have room for all; two Valkeys; the indexer, answering replicas."""
    from ray import serve

    from services.indexer.main import app
    from x2l_cluster.cluster import Place, answerer, front

    with ExitStack() as stack:
        state, kv = Server(folder / "state", durable=True), Server(folder / "kv", durable=False)
        (folder / "state").mkdir()
        for server in (state, kv):
            server.start()
            stack.callback(server.kill)
        arena = Path(f"/dev/shm/x2l-test-{os.getpid()}-{uuid4().hex[:8]}")
        stack.callback(lambda: [file.unlink() for file in arena.parent.glob(f"{arena.name}*")])
        store = f"tiers:host:{arena}?budget={64 << 20}|{kv.url}|disk:{folder / 'shared'}"
        chosen = {"store": store, "state": state.url, "device": "cpu", "cache_bytes": 256 << 20, "lease_s": lease_s}
        chosen |= {"prefill_min": prefill, "prefill_max": prefill}
        cluster = stack.enter_context(ray_cluster(workers=3, cpus=8, prefill=2, answer=1, gateway=1))
        indexer = serve.run(app(chosen), name="indexer", route_prefix=None)
        serve.run(
            answerer(chosen, num_replicas=answer, ray_actor_options={"num_cpus": 1, "resources": {"answer": 0.5}}),
            name="answerer",
            route_prefix=None,
        )
        service = stack.enter_context(front(Place.of(Settings.over(chosen))))
        yield Whole(cluster=cluster, state=state, kv=kv, service=service, chosen=chosen, indexer=indexer)


# --- load -----------------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What became of a load."""

    jobs: dict[str, Job] = field(default_factory=dict)
    events: dict[str, list[JobEvent]] = field(default_factory=dict)
    answers: dict[tuple[str, str], list[AnswerCompleted]] = field(default_factory=lambda: defaultdict(list))
    failed: Counter[str] = field(default_factory=Counter)
    """Codes of problems of answers that failed; all of them said that asking again may help."""
    refused: Counter[str] = field(default_factory=Counter)
    """Codes of errors that calls ended with; all of them retryable."""
    rows: dict[tuple[str, int], ChunkRow] = field(default_factory=dict)
    """Chunks as they were when they were first seen sealed."""
    asking: int = 0
    asked_at_once: int = 0
    over: bool = False
    submitted: list[tuple[str, Job]] = field(default_factory=list)

    @property
    def ended(self) -> int:
        return sum(map(len, self.answers.values()))

    @property
    def attempts(self) -> int:
        return sum(job.attempts for job in self.jobs.values())

    @property
    def degraded(self) -> int:
        return sum(answer.degraded for answers in self.answers.values() for answer in answers)


async def load(whole: Whole, films: Sequence[Film], questions: int, told: Told, *, wait: bool = True) -> None:
    """Submits all films at once, and asks so many questions at once; each waits for its own video, or with ``wait``
    for all of them."""
    ready = {film.name: asyncio.Event() for film in films}
    everything = asyncio.Event()

    async def job(film: Film) -> None:
        submitted = await patiently(told, lambda: _submitted(whole.service, film))
        told.jobs[film.name] = submitted
        told.submitted.append((film.tenant, submitted))
        ended = await patiently(told, lambda: _ended(whole.service, film, submitted))
        told.jobs[film.name] = ended
        ready[film.name].set()

    async def question(number: int) -> None:
        film = films[number % len(films)]
        text = film.questions[number // len(films) % len(film.questions)]
        await (everything if wait else ready[film.name]).wait()
        told.asking += 1
        told.asked_at_once = max(told.asked_at_once, told.asking)
        try:
            told.answers[film.name, text].append(
                await patiently(told, lambda: _answered(whole.service, film, text, told))
            )
        finally:
            told.asking -= 1

    async def jobs() -> None:
        await asyncio.gather(*map(job, films))
        everything.set()

    watching = asyncio.create_task(_watch(whole.service, films, told))
    try:
        await asyncio.gather(jobs(), *map(question, range(questions)))
        told.over = True
        for film in films:
            told.events[film.name] = await patiently(told, lambda film=film: _events(whole.service, film, told))
    finally:
        watching.cancel()


async def patiently(told: Told, call: Callable[[], Awaitable[T]]) -> T:
    """As a good client does: what is retryable is tried again."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except X2LError as error:
            if not error.retryable or time.monotonic() > end_s:
                raise
            told.refused[error.code] += 1
            await asyncio.sleep(max(_PAUSE_S, min(error.retry_after_s or 0.0, 2.0)))


async def _submitted(service: FrontService, film: Film) -> Job:
    source = await service.keep(film.tenant, pieces(film.path.read_bytes(), 1 << 16), name=film.path.name)
    return await service.submit(film.tenant, IndexRequest(source=source, video=film.name, idempotency_key=film.name))


async def _ended(service: FrontService, film: Film, job: Job) -> Job:
    end_s = time.monotonic() + PATIENCE_S
    while not (found := await service.job(film.tenant, job.id, wait_s=30.0)).state.final:
        assert time.monotonic() < end_s, found
    return found


async def _events(service: FrontService, film: Film, told: Told) -> list[JobEvent]:
    return [event async for event in service.job_events(film.tenant, told.jobs[film.name].id)]


async def _answered(service: FrontService, film: Film, question: str, told: Told) -> AnswerCompleted:
    events = [
        event
        async for event in service.answers(film.tenant, Ask(question=question, videos=(film.name,), max_tokens=16))
    ]
    (end,) = [event for event in events if isinstance(event, AnswerCompleted | AnswerFailed)]  # one, not none or two
    if isinstance(end, AnswerFailed):
        told.failed[end.problem.code] += 1
        raise end.problem.error
    return end


async def _watch(service: FrontService, films: Sequence[Film], told: Told) -> None:
    while True:
        for film in films:
            await asyncio.to_thread(note_rows, service, film, told)
        await asyncio.sleep(_PAUSE_S)


def note_rows(service: FrontService, film: Film, told: Told) -> None:
    with suppress(X2LError):
        for row in service.stores.manifest(film.tenant, film.name).chunks:
            told.rows.setdefault((film.name, row.index), row)


# --- what is done to it in the meantime ----------------------------------------------------------------------------


async def kill_one_after_the_other(whole: Whole, told: Told, chunks: int, order: Sequence[str]) -> list[str]:
    """kill -9 of these :data:`KILLS`, each when some more of all chunks are sealed. Returns what was hit, and when."""
    done = []
    for number, kind in enumerate(order):
        enough = number * chunks / len(order)
        await until(lambda enough=enough: told.over or len(told.rows) > enough)
        late = " (too late)" if told.over else ""
        done.append(f"{await KILLS[kind](whole, told)}, {len(told.rows)} chunks sealed, {told.asking} asked{late}")
    return done


async def _kill_prefill(whole: Whole, told: Told) -> str:
    pids = await _some(whole.prefill_pids)
    os.kill(max(pids, key=lambda pid: pids[pid]), signal.SIGKILL)  # one that is busy, if any is
    return "a prefill worker"


async def _kill_answer(whole: Whole, told: Told) -> str:
    await until(lambda: told.over or told.asking > 0)
    os.kill(min(await _some(whole.answer_pids)), signal.SIGKILL)
    return "an answer worker"


async def _kill_node(whole: Whole, told: Told) -> str:
    await asyncio.to_thread(whole.kill_node)
    return "a node"


async def _kill_kv(whole: Whole, told: Told) -> str:
    """It stays away until that was noticed."""
    held, ended = whole.kv.held_bytes(), told.ended
    whole.kv.kill()

    def noticed() -> bool:
        jobs = (whole.service.state.jobs.job(tenant, job.id) for tenant, job in told.submitted)
        return told.ended > ended or any(job.problem is not None for job in jobs)

    await until(lambda: told.over or noticed())
    whole.kv.start()
    return f"the kv server with {held} bytes"


async def _kill_state(whole: Whole, told: Told) -> str:
    refused = told.refused.total()
    whole.state.kill()
    await until(lambda: told.over or told.refused.total() > refused)
    whole.state.start()
    return "the state server"


KILLS: Mapping[str, Callable[[Whole, Told], Awaitable[str]]] = {
    "prefill": _kill_prefill,
    "answer": _kill_answer,
    "node": _kill_node,
    "kv": _kill_kv,
    "state": _kill_state,
}


async def _some(look: Callable[[], T]) -> T:
    """What is found at last: who was hit before may not be back yet."""
    while not (found := await asyncio.to_thread(look)):
        await asyncio.sleep(_PAUSE_S)
    return found


async def until(what: Callable[[], Any], within_s: float = PATIENCE_S) -> None:
    end_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.05)


# --- what must be so afterwards -------------------------------------------------------------------------------------


def check_jobs(whole: Whole, films: Sequence[Film], *loads: Told) -> None:
    """None lost, none twice, all of each told once; what was seen sealed was not made again."""
    jobs, all_events, rows = (ChainMap(*(vars(told)[what] for told in loads)) for what in ("jobs", "events", "rows"))
    by_tenant = defaultdict(list)
    for film in films:
        by_tenant[film.tenant].append(film.name)
        job, events = jobs[film.name], all_events[film.name]
        assert (job.state, job.chunks_done, job.chunks) == (JobState.READY, film.chunks, film.chunks), job
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert [event.name for event in events].count("job.ready") == 1
        done = [event.job.chunks_done for event in events]
        assert done == sorted(done)
        manifest = whole.service.stores.manifest(film.tenant, film.name)
        assert (manifest.status, len(manifest.chunks)) == (IndexStatus.READY, film.chunks)
        for row in manifest.chunks:
            seen = rows.get((film.name, row.index), row)
            assert (seen.span, _epochs(seen)) == (row.span, _epochs(row)), f"{film.name}: chunk {row.index} made again"
    for tenant, names in by_tenant.items():
        assert {record.video for record in whole.service.stores.state.videos(tenant)} == set(names)
        listed = {job.id for job in whole.service.state.jobs.jobs(tenant)}
        assert listed == {jobs[name].id for name in names}


def _epochs(row: ChunkRow) -> dict[str, int]:
    return {kind: ref.epoch for kind, ref in row.blocks.items()}


def answers_of_one_engine(folder: Path, films: Sequence[Film], *loads: Told) -> dict[tuple[str, str], str]:
    """What an engine of this process, over stores of its own, says to the same questions about the same videos."""
    with VideoEngine.from_pretrained("reference", store=f"disk:{folder}", device="cpu") as engine:
        said = {}
        for film in films:
            engine.index(film.path, video=film.name)
            for name, question in {key for told in loads for key in told.answers}:
                if name == film.name:
                    said[name, question] = engine.ask(name, question, generation=Generation(max_tokens=16)).text
    return said


class Memory:
    """Highest resident bytes of each worker process, a period at a time."""

    def __init__(self) -> None:
        self.periods: list[dict[str, int]] = [{}]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def next_period(self) -> None:
        self.periods.append({})

    def _sample(self) -> None:
        while not self._ended.wait(0.5):
            for process in _ray_processes():
                title = _title(process)
                if "PrefillWorker" in title or "ServeReplica:answerer" in title:
                    with suppress(psutil.Error):
                        key, held = f"{title.split()[0]} {process.pid}", process.memory_info().rss
                        self.periods[-1][key] = max(self.periods[-1].get(key, 0), held)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
