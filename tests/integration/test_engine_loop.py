"""The answering loop: people join and leave a running batch, and every ticket ends."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from prometheus_client import REGISTRY

from tests.engines import SMALL, calibration, engine, mosaic
from tests.gates import WAIT_S, GatedStore, gated, watched
from x2l_cluster import metrics
from x2l_cluster.engine import (
    AnswerLoop,
    Completed,
    Delta,
    Evidenced,
    Generation,
    Limits,
    Planned,
    Stores,
    VideoEngine,
)
from x2l_cluster.engine.room import Room
from x2l_cluster.errors import (
    AnswerLost,
    Cancelled,
    DeadlineExceeded,
    ExceedsDevice,
    KVMissing,
    Overloaded,
    PromptTooLong,
    UnknownVideo,
)
from x2l_cluster.types import Kind

QUESTIONS = ["What code is shown with the red star?", "How many rings?", "Is it day?", "What is at 0:05?"]
WRITE = Generation(max_tokens=12, ignore_stop_ids=True)
LONG = Generation(max_tokens=400, ignore_stop_ids=True)
ONE = Limits(planners=1, loaders=1)


class Clock:
    """Time that stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    return [mosaic(folder / f"{n}.mp4", 12 + 4 * n, seed=n) for n in range(3)]


@pytest.fixture(scope="module")
def lm():
    return watched(0)


@pytest.fixture(scope="module")
def x2l(lm, films) -> VideoEngine:
    with engine(lm=lm) as made:
        for number, film in enumerate(films):
            made.index(film, video=f"v{number}", **SMALL)
        yield made


@pytest.fixture(autouse=True)
def _calm(lm):
    yield
    lm.before = lambda steps: None


@pytest.fixture
def slow(lm, films) -> tuple[VideoEngine, GatedStore]:
    """An engine of its own, nothing hot, whose fine blocks come when the gate opens."""
    stores, store = gated(Stores.open("memory:"), Kind.L)
    with VideoEngine(lm, stores, calibration=calibration(lm)) as made:
        for number, film in enumerate(films[:2]):
            made.index(film, video=f"v{number}", **SMALL)
        yield made, store
        store.gate.set()


def ask(x2l: VideoEngine, loop: AnswerLoop, video: str, question: str, generation=WRITE, deadline_s=None, **options):
    return loop.submit(x2l.asked(video, question, **options), generation, deadline_s=deadline_s)


def deltas(ticket) -> str:
    return "".join(event.text for event in ticket if isinstance(event, Delta))


def same(answer, alone) -> bool:
    """All but what depends on time and on what was hot."""
    names = ("text", "video", "finish", "covered")
    return all(getattr(answer, name) == getattr(alone, name) for name in names) and answer.plan.fine == alone.plan.fine


# --- what is answered -----------------------------------------------------------------------------------------------


def test_answers_of_people_who_join_a_running_batch_are_those_they_get_alone(x2l):
    wanted = [(f"v{n % 3}", QUESTIONS[n % 4], ("auto", "coarse", "fine", "k=2")[n % 4]) for n in range(12)]
    alone = [x2l.ask(video, question, detail=detail, generation=WRITE) for video, question, detail in wanted]
    with AnswerLoop(x2l.answerer) as loop:
        tickets = []
        for video, question, detail in wanted:
            tickets.append(ask(x2l, loop, video, question, detail=detail))
            if len(tickets) % 3 == 0:  # the next ones join when this one is being written
                next(event for event in tickets[-1].follow() if isinstance(event, Delta | Completed))
        answers = [ticket.result(WAIT_S) for ticket in tickets]
    assert all(same(answer, expected) for answer, expected in zip(answers, alone, strict=True))


def test_events_come_in_order_and_deltas_joined_are_the_text(x2l):
    with AnswerLoop(x2l.answerer) as loop:
        events = list(ask(x2l, loop, "v1", QUESTIONS[0], detail="k=2"))
    kinds = [type(event) for event in events]
    middle = kinds[1:-2]
    assert kinds[0] is Planned and set(middle) == {Delta} and kinds[-2:] == [Evidenced, Completed]
    answer = events[-1].answer
    assert "".join(event.text for event in events if isinstance(event, Delta)) == answer.text != ""
    assert events[0].plan == answer.plan and events[-2].evidence == answer.evidence
    assert events[0].covered == answer.covered == x2l.manifest("v1").span
    assert {"queue_s", "coarse_s", "score_s", "reload_s", "assemble_s", "decode_s", "ttft_s"} <= answer.timings.keys()


def test_a_stop_text_never_shows_in_the_deltas(x2l):
    text = x2l.ask("v0", QUESTIONS[0], generation=replace(LONG, max_tokens=60)).text
    stop = text[20:23]
    with AnswerLoop(x2l.answerer) as loop:
        ticket = ask(x2l, loop, "v0", QUESTIONS[0], replace(LONG, stop=(stop,)))
        written = deltas(ticket)
    assert ticket.result().finish == "stop"
    assert written == ticket.result().text == text[: text.index(stop)].strip()


def test_questions_about_one_video_that_wait_together_share_one_forward(slow, lm):
    x2l, _ = slow
    sizes, held = [], threading.Event()

    def before(steps):
        assert held.wait(WAIT_S)
        if threading.current_thread().name == "x2l_plan":
            sizes.append(len(steps))

    lm.before = before
    with AnswerLoop(x2l.answerer, Limits(planners=1, loaders=4, group=3)) as loop:
        tickets = [ask(x2l, loop, video, question) for video in ("v0", "v1") for question in QUESTIONS]
        held.set()
        assert [ticket.result(WAIT_S).finish for ticket in tickets] == ["length"] * 8
    assert sum(sizes) >= 8 and len(sizes) <= 5  # the first may have gone alone


def test_a_reload_that_hangs_holds_nobody_else_up(slow):
    x2l, store = slow
    with AnswerLoop(x2l.answerer) as loop:
        store.gate.clear()
        stuck = ask(x2l, loop, "v0", QUESTIONS[0], detail="fine")
        assert store.reached.wait(WAIT_S)
        other = ask(x2l, loop, "v1", QUESTIONS[1], detail="coarse")
        assert other.result(WAIT_S).finish == "length"
        assert not stuck.done
        store.gate.set()
        assert stuck.result(WAIT_S).finish == "length"


# --- what goes wrong with one ---------------------------------------------------------------------------------------


def test_one_bad_question_fails_alone_also_among_those_it_was_scored_with(x2l, lm):
    with AnswerLoop(x2l.answerer, ONE) as loop:
        held = threading.Event()
        lm.before = lambda steps: held.wait(WAIT_S)
        tickets = [ask(x2l, loop, "v2", QUESTIONS[0])]  # keeps the planner busy while the others gather
        good = [ask(x2l, loop, "v0", question) for question in QUESTIONS[:2]]
        bad = ask(x2l, loop, "v0", "why? " * 900)
        held.set()
        with pytest.raises(PromptTooLong):
            bad.result(WAIT_S)
        assert [ticket.result(WAIT_S).finish for ticket in tickets + good] == ["length"] * 3


def test_a_step_that_fails_fails_only_the_answer_at_fault(x2l, lm):
    alone = x2l.ask("v0", QUESTIONS[0], generation=LONG)
    with AnswerLoop(x2l.answerer) as loop:
        good = ask(x2l, loop, "v0", QUESTIONS[0], LONG)
        events = good.follow()
        next(event for event in events if isinstance(event, Delta))
        entries = x2l.ask("v1", QUESTIONS[1], detail="fine", generation=WRITE).usage.kv_entries

        def before(steps):
            if any(entries < step.view.shared < entries + 40 for step in steps):
                raise RuntimeError("this one cannot be computed")

        lm.before = before
        bad = ask(x2l, loop, "v1", QUESTIONS[1], detail="fine")
        with pytest.raises(AnswerLost, match="cannot be computed"):
            bad.result(WAIT_S)
        assert same(good.result(WAIT_S), alone)


@pytest.mark.parametrize("kind", [Kind.H, Kind.L])
def test_what_a_store_has_lost_fails_or_flags_the_question_and_no_other(films, lm, kind):
    with engine(lm=lm) as x2l:
        lost, _ = (x2l.index(film, video=f"v{n}", **SMALL) for n, film in enumerate(films[:2]))
        x2l.stores.kv.delete([key for key in lost.named if key.kind[0] == kind])
        with AnswerLoop(x2l.answerer) as loop:
            bad, good = (ask(x2l, loop, video, QUESTIONS[0], detail="k=1") for video in ("v0", "v1"))
            if kind is Kind.H:
                with pytest.raises(KVMissing):
                    bad.result(WAIT_S)
            else:
                assert bad.result(WAIT_S).degraded
            assert not good.result(WAIT_S).degraded


def test_nothing_indexed_yet_is_an_unknown_video(x2l):
    empty = replace(x2l.manifest("v0"), chunks=())
    with AnswerLoop(x2l.answerer) as loop, pytest.raises(UnknownVideo):
        loop.submit(x2l.asked(empty, QUESTIONS[0])).result(WAIT_S)


# --- leaving and being late -----------------------------------------------------------------------------------------


def test_a_question_can_be_cancelled_waiting_reloading_and_writing(slow):
    x2l, store = slow
    with AnswerLoop(x2l.answerer, replace(ONE, batch=2)) as loop:
        writing = ask(x2l, loop, "v1", QUESTIONS[0], replace(LONG, max_tokens=3000), detail="coarse")
        next(event for event in writing.follow() if isinstance(event, Delta))
        store.gate.clear()
        reloading = ask(x2l, loop, "v0", QUESTIONS[0], detail="fine")
        assert store.reached.wait(WAIT_S)
        waiting = ask(x2l, loop, "v0", QUESTIONS[1])
        assert loop.waiting == 1
        for ticket in (waiting, reloading, writing):
            ticket.cancel()
            with pytest.raises(Cancelled):
                ticket.result(0)
        assert loop.waiting == loop.live == 0
        store.gate.set()
        assert ask(x2l, loop, "v0", QUESTIONS[0]).result(WAIT_S).finish == "length"


def test_leaving_an_iteration_cancels(x2l):
    async def first_delta(ticket) -> str:
        async with aclosing(ticket.__aiter__()) as events:
            return "".join([event.text async for event in events if isinstance(event, Delta)][:1])

    async def leave(ticket) -> None:
        async with aclosing(ticket.__aiter__()) as events:
            async for _ in events:
                return

    with AnswerLoop(x2l.answerer) as loop:
        ticket = ask(x2l, loop, "v0", QUESTIONS[0], LONG)
        asyncio.run(leave(ticket))
        with pytest.raises(Cancelled):
            ticket.result(0)
        assert asyncio.run(first_delta(ask(x2l, loop, "v0", QUESTIONS[0])))
        with ask(x2l, loop, "v0", QUESTIONS[0], LONG) as ticket:
            pass
        assert ticket.done


def test_a_deadline_before_the_first_word_is_an_error(x2l, lm):
    held = threading.Event()
    lm.before = lambda steps: held.wait(WAIT_S)
    with AnswerLoop(x2l.answerer) as loop:
        late = ask(x2l, loop, "v0", QUESTIONS[0], detail="fine", deadline_s=0.05)
        with pytest.raises(DeadlineExceeded):
            late.result(WAIT_S)
        held.set()


def test_a_deadline_cuts_the_fetch_short_and_the_answer_is_coarse_in_time_and_says_so(slow, monkeypatch):
    x2l, store = slow
    monkeypatch.setattr("x2l_cluster.engine.read.BASE_S", 2 * WAIT_S)
    coarse = x2l.ask("v0", QUESTIONS[0], detail="coarse", generation=WRITE)
    with AnswerLoop(x2l.answerer, clock=Clock()) as loop:
        store.gate.clear()
        hurried = ask(x2l, loop, "v0", QUESTIONS[0], detail="k=2", deadline_s=0.4)
        answer = hurried.result(WAIT_S)
        assert answer.degraded and {item.degraded for item in answer.evidence} == {"late"}
        assert (answer.text, answer.finish) == (coarse.text, "length")
        store.gate.set()


@pytest.mark.parametrize("hurried_first", [True, False])
def test_who_is_in_a_hurry_neither_waits_for_a_patient_fetch_nor_spoils_it(slow, monkeypatch, hurried_first):
    x2l, store = slow
    monkeypatch.setattr("x2l_cluster.engine.read.BASE_S", 2 * WAIT_S)
    fine = x2l.ask("v0", QUESTIONS[0], detail="fine", generation=WRITE)
    x2l.answerer.forget("local", "v0")
    with AnswerLoop(x2l.answerer, clock=Clock()) as loop:
        store.gate.clear()
        store.reached.clear()
        tickets = {}
        for hurried in (hurried_first, not hurried_first):
            tickets[hurried] = ask(x2l, loop, "v0", QUESTIONS[0], detail="fine", deadline_s=0.4 if hurried else None)
            assert store.reached.wait(WAIT_S)
        assert tickets[True].result(WAIT_S).degraded
        assert not tickets[False].done
        store.gate.set()
        answer = tickets[False].result(WAIT_S)
    assert not answer.degraded and answer.text == fine.text


def test_a_deadline_while_writing_ends_the_answer_there(x2l):
    clock = Clock()
    with AnswerLoop(x2l.answerer, clock=clock) as loop:
        ticket = ask(x2l, loop, "v0", QUESTIONS[0], replace(LONG, max_tokens=3000), deadline_s=5.0)
        text = ""
        for event in ticket:
            if isinstance(event, Delta):
                text += event.text
                clock.now = 6.0
        answer = ticket.result()
    assert answer.finish == "deadline"
    assert 0 < answer.usage.answer_tokens < 3000 and text == answer.text


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_back(slow):
    x2l, store = slow
    with AnswerLoop(x2l.answerer, replace(ONE, batch=1, waiting=2)) as loop:
        store.gate.clear()
        running = ask(x2l, loop, "v0", QUESTIONS[0], detail="fine")
        assert store.reached.wait(WAIT_S)
        waiting = [ask(x2l, loop, "v1", question) for question in QUESTIONS[:2]]
        with pytest.raises(Overloaded) as refused:
            ask(x2l, loop, "v1", QUESTIONS[2])
        assert refused.value.retry_after_s >= 1.0
        waiting.pop().cancel()  # whoever leaves makes room
        waiting.append(ask(x2l, loop, "v1", QUESTIONS[2]))
        store.gate.set()
        assert all(ticket.result(WAIT_S) for ticket in [running, *waiting])


def test_what_can_never_fit_on_the_device_is_refused_and_says_what_to_do(x2l):
    manifest = x2l.manifest("v2")
    room = Room(x2l.lm, 1 << 30)
    coarse, fine = room.needs(manifest), room.needs(manifest, range(len(manifest.chunks)))
    with (
        AnswerLoop(x2l.answerer, Limits(device_bytes=coarse - 1)) as loop,
        pytest.raises(ExceedsDevice, match="coarser recipe"),
    ):
        ask(x2l, loop, "v2", QUESTIONS[0])
    with AnswerLoop(x2l.answerer, Limits(device_bytes=fine)) as loop:
        with pytest.raises(ExceedsDevice, match="less detail"):
            ask(x2l, loop, "v2", QUESTIONS[0], detail="fine").result(WAIT_S)
        assert ask(x2l, loop, "v2", QUESTIONS[0], detail="coarse").result(WAIT_S).text


def test_questions_that_fit_one_by_one_wait_for_each_other(x2l, lm):
    size = Room(x2l.lm, 1 << 30).needs(x2l.manifest("v0"), range(99))
    together = []

    def before(steps):
        if threading.current_thread().name == "x2l_decode":
            together.append(len(steps))

    lm.before = before
    with AnswerLoop(x2l.answerer, Limits(device_bytes=int(size * 1.9))) as loop:
        tickets = [ask(x2l, loop, "v0", QUESTIONS[n % 4], detail="fine") for n in range(6)]
        texts = [ticket.result(WAIT_S).text for ticket in tickets]
    assert max(together) == 1
    assert texts == [x2l.ask("v0", QUESTIONS[n % 4], detail="fine", generation=WRITE).text for n in range(6)]


def test_all_room_is_given_back(x2l):
    with AnswerLoop(x2l.answerer) as loop:
        tickets = [ask(x2l, loop, f"v{n % 3}", QUESTIONS[n % 4], LONG) for n in range(9)]
        for ticket in tickets[::2]:
            ticket.cancel()
        for ticket in tickets[1::2]:
            ticket.result(WAIT_S)
    assert loop._room.taken_bytes == 0


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.soak), pytest.param(2, marks=pytest.mark.soak)])
def test_whoever_comes_leaves_or_is_late_at_any_time_every_ticket_ends_and_answers_are_right(x2l, seed):
    random = Random(seed)
    wanted = [(f"v{n % 3}", QUESTIONS[n % 4], ("auto", "coarse", "fine", "k=1")[n % 4]) for n in range(12)]
    alone = {each: x2l.ask(each[0], each[1], detail=each[2], generation=WRITE) for each in wanted}
    clock = Clock()
    limits = Limits(batch=5, planners=2, loaders=2, group=3, device_bytes=2 << 20)
    asked = []
    with AnswerLoop(x2l.answerer, limits, clock=clock) as loop:
        for _ in range(40):
            each = random.choice(wanted)
            due = random.choice([None, None, 100.0])
            asked.append((each, ask(x2l, loop, each[0], each[1], detail=each[2], deadline_s=due)))
            what = random.random()
            if what < 0.3:
                random.choice(asked)[1].cancel()
            elif what < 0.4:
                clock.now += 200.0
            elif what < 0.6:
                next(asked[-1][1].follow(), None)
        ended = 0
        for each, ticket in asked:
            try:
                answer = ticket.result(WAIT_S)
            except (Cancelled, DeadlineExceeded):
                continue
            ended += 1
            if answer.finish == "deadline":
                assert alone[each].text.startswith(answer.text)
            else:
                assert same(answer, alone[each])
        assert ended > 5
    assert loop.live == loop.waiting == loop._room.taken_bytes == 0


# --- the end --------------------------------------------------------------------------------------------------------


def test_a_batch_that_dies_loses_its_answers_and_the_next_one_goes_on(x2l, lm):
    class Dead(BaseException):
        pass

    def die(steps):
        lm.before = lambda steps: None
        raise Dead

    with AnswerLoop(x2l.answerer) as loop:
        ticket = ask(x2l, loop, "v0", QUESTIONS[0], LONG)
        next(event for event in ticket.follow() if isinstance(event, Delta))
        lm.before = die
        with pytest.raises(AnswerLost):
            ticket.result(WAIT_S)
        assert loop.healthy
        assert ask(x2l, loop, "v0", QUESTIONS[0]).result(WAIT_S).finish == "length"
        assert loop._room.taken_bytes >= 0


def test_a_batch_that_dies_again_and_again_is_given_up_and_says_so(slow, lm):
    class Dead(BaseException):
        pass

    def die(steps):
        if threading.current_thread().name == "x2l_decode":
            raise Dead

    x2l, _ = slow
    with AnswerLoop(x2l.answerer) as loop:
        lm.before = die
        for _ in range(3):
            with pytest.raises(AnswerLost):
                ask(x2l, loop, "v0", QUESTIONS[0]).result(WAIT_S)
        assert not loop.healthy
        with pytest.raises(AnswerLost, match="given up"):
            ask(x2l, loop, "v0", QUESTIONS[0])


def test_closing_finishes_what_is_there_and_takes_nothing_more(x2l):
    loop = AnswerLoop(x2l.answerer)
    tickets = [ask(x2l, loop, "v0", question) for question in QUESTIONS]
    loop.close(drain_s=WAIT_S)
    assert [ticket.result(0).finish for ticket in tickets] == ["length"] * 4
    with pytest.raises(Overloaded, match="shutting down"):
        ask(x2l, loop, "v0", QUESTIONS[0])
    loop.close()


def test_closing_does_not_wait_for_ever(slow):
    x2l, store = slow
    loop = AnswerLoop(x2l.answerer)
    store.gate.clear()
    stuck = ask(x2l, loop, "v0", QUESTIONS[0], detail="fine")
    assert store.reached.wait(WAIT_S)
    loop.close(drain_s=0.0)
    with pytest.raises(Overloaded):
        stuck.result(0)


def test_what_happens_is_counted(x2l):
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    names = {
        "x2l_questions_total": {"outcome": "ok"},
        "x2l_ttft_seconds_count": {},
        "x2l_question_seconds_count": {},
        "x2l_decode_batch_count": {},
        "x2l_inter_token_seconds_count": {},
        "x2l_phase_seconds_count": {"phase": "reload"},
    }
    before = {name: value(name, **labels) for name, labels in names.items()}
    lost = value("x2l_questions_total", outcome="cancelled")
    written = value("x2l_tokens_total", side="answer")
    with AnswerLoop(x2l.answerer) as loop:
        ask(x2l, loop, "v0", QUESTIONS[0]).result(WAIT_S)
        ask(x2l, loop, "v0", QUESTIONS[0]).cancel()
    assert all(value(name, **labels) > before[name] for name, labels in names.items())
    assert value("x2l_questions_total", outcome="cancelled") == lost + 1
    assert value("x2l_tokens_total", side="answer") == written + 12
    assert value("x2l_queued", queue="answers") == 0


def test_bytes_that_travel_are_counted_by_the_tier_they_came_from_once(slow):
    x2l, _ = slow

    def counted() -> dict[str, float]:
        samples = [sample for family in metrics.RELOAD_BYTES.collect() for sample in family.samples]
        return {sample.labels["tier"]: sample.value for sample in samples if sample.name.endswith("_total")}

    with AnswerLoop(x2l.answerer) as loop:
        before = counted()
        answer = ask(x2l, loop, "v0", QUESTIONS[0], detail="k=2").result(WAIT_S)
        once = counted()
        ask(x2l, loop, "v0", QUESTIONS[0], detail="k=2").result(WAIT_S)  # hot by now
    (tier,) = {item.tier for item in answer.evidence}
    assert once[tier] - before.get(tier, 0.0) == answer.usage.reload_bytes > 0
    assert counted() == once
