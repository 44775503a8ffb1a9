"""What every SessionStore promises, run over all of them; the remote one against a real server."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.ledgers import Clock, LedgerMaker
from x2l_cluster.errors import InvalidInput, QuotaExceeded, UnknownSession
from x2l_cluster.messages import Turn
from x2l_cluster.state.sessions import Sessions, SessionStore

Maker = Callable[..., SessionStore]
TURN = Turn(question="what – ü?", answers={"v1": "a", "v2": ""})


@pytest.fixture
def maker(ledgers: LedgerMaker, clock: Clock) -> Maker:
    return lambda **options: Sessions(ledgers("sessions"), clock=clock, **options)


def test_a_session_gathers_turns_that_everyone_sees(maker: Maker, clock: Clock) -> None:
    here, there = maker(), maker()
    opened = here.open("ada", ["v1", "v2"], ttl_s=60.0)
    assert (opened.videos, opened.turns, opened.expires_s) == (("v1", "v2"), (), 1060.0)
    assert there.session("ada", opened.id) == opened
    clock.now_s += 10
    after = there.append("ada", opened.id, TURN)
    assert (after.turns, after.expires_s) == ((TURN,), 1070.0)
    assert here.session("ada", opened.id) == after


def test_a_session_that_is_not_gone_on_with_is_over(maker: Maker, clock: Clock) -> None:
    store = maker()
    session = store.open("ada", ["v1"], ttl_s=60.0)
    clock.now_s += 59.0
    store.append("ada", session.id, TURN)
    clock.now_s += 59.0
    assert store.sweep() == 0
    assert store.session("ada", session.id).turns == (TURN,)
    clock.now_s += 1.0
    for late in (
        lambda: store.session("ada", session.id),
        lambda: store.append("ada", session.id, TURN),
        lambda: store.forget("ada", session.id),
    ):
        with pytest.raises(UnknownSession):
            late()
    assert store.sweep() == 1
    assert store.sweep() == 0


def test_a_forgotten_session_is_unknown_and_so_is_another_tenants(maker: Maker) -> None:
    store = maker()
    session = store.open("ada", ["v1"])
    for step in (store.session, store.forget, lambda t, s: store.append(t, s, TURN)):
        with pytest.raises(UnknownSession):
            step("bob", session.id)
    store.forget("ada", session.id)
    for step in (store.session, store.forget, lambda t, s: store.append(t, s, TURN)):
        with pytest.raises(UnknownSession):
            step("ada", session.id)


def test_turns_appended_at_once_are_all_there(maker: Maker) -> None:
    session = maker().open("ada", ["v1"])

    def work(n: int) -> None:
        maker().append("ada", session.id, Turn(question=str(n), answers={}))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))
    turns = maker().session("ada", session.id).turns
    assert sorted(int(turn.question) for turn in turns) == list(range(12))


def test_of_many_turns_the_newest_are_kept_and_of_long_answers_the_beginning(maker: Maker) -> None:
    store = maker()
    videos = [f"v{n}" for n in range(64)]
    session = store.open("ada", videos)
    for n in range(40):
        long = Turn(question=str(n), answers=dict.fromkeys(videos, f"{n} " + "ü" * 16_000))
        session = store.append("ada", session.id, long)
    assert [int(turn.question) for turn in session.turns] == [37, 38, 39]
    assert all(text.startswith(turn.question + " ü") for turn in session.turns for text in turn.answers.values())
    for n in range(100):
        session = store.append("ada", session.id, Turn(question=str(n), answers={"v1": "yes"}))
    assert [int(turn.question) for turn in session.turns] == list(range(36, 100))
    assert store.session("ada", session.id) == session


def test_a_tenant_has_so_many_sessions_at_a_time(maker: Maker, clock: Clock) -> None:
    store = maker(most=2)
    first = store.open("ada", ["v1"], ttl_s=60.0)
    store.open("ada", ["v1"], ttl_s=90.0)
    with pytest.raises(QuotaExceeded):
        store.open("ada", ["v1"])
    store.open("bob", ["v1"])
    store.append("ada", first.id, TURN)
    clock.now_s += 60.0
    store.open("ada", ["v1"])  # the time of one is over


@pytest.mark.parametrize("videos", [[], ["a/b"], ["v1", "v1"], [f"v{n}" for n in range(65)]])
def test_a_session_is_about_videos_that_can_be(maker: Maker, videos: list[str]) -> None:
    with pytest.raises(InvalidInput):
        maker().open("ada", videos)


@pytest.mark.parametrize("name", ["", "..", "a/b", "{a}", "x" * 129])
def test_names_that_could_leave_their_place_are_refused(maker: Maker, name: str) -> None:
    store = maker()
    for step in (
        lambda: store.open(name, ["v1"]),
        lambda: store.session("ada", name),
        lambda: store.session(name, "s"),
    ):
        with pytest.raises(InvalidInput):
            step()


def test_text_that_is_none_is_refused_and_nothing_has_changed(maker: Maker) -> None:
    store = maker()
    session = store.open("ada", ["v1"])
    with pytest.raises(InvalidInput):
        store.append("ada", session.id, Turn(question="\ud800", answers={}))
    assert store.session("ada", session.id) == session
