"""Everything that travels comes back equal from its JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from x2l_cluster import messages, types
from x2l_cluster.api.wire import dump
from x2l_cluster.client.call import value
from x2l_cluster.messages import (
    AnswerCompleted,
    AnswerCreated,
    AnswerFailed,
    Answers,
    Part,
    PartResult,
    Problem,
)
from x2l_cluster.types import Detail, PlannedChunk, ReloadPlan, Span

KINDS = sorted(
    {kind for kind in vars(messages).values() if is_dataclass(kind) and kind.__module__ == messages.__name__}  # type: ignore[attr-defined]
    | {types.Answer, types.SourceRef, types.ReloadPlan},
    key=lambda kind: kind.__name__,  # type: ignore[union-attr]
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
st.register_type_strategy(float, NUMBERS)
st.register_type_strategy(Mapping, lambda kind: st.dictionaries(*map(st.from_type, kind.__args__), max_size=3))  # type: ignore[type-abstract]
st.register_type_strategy(
    Span,
    st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)).map(lambda ends: Span(start_s=min(ends), end_s=max(ends))),
)
st.register_type_strategy(
    Detail,
    st.sampled_from(["auto", "coarse", "fine"]).map(lambda mode: Detail(mode=mode))
    | st.integers(0, 1 << 53).map(lambda k: Detail(mode="k", k=k))
    | st.integers(0, 1 << 53).map(lambda size: Detail(mode="budget", budget_bytes=size)),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_message_comes_back_equal(kind: Any, data: st.DataObject) -> None:
    hints = get_type_hints(kind)
    sent = data.draw(st.builds(kind, **{f.name: st.from_type(hints[f.name]) for f in fields(kind)}))
    assert value(kind, dump(sent)) == sent


def test_numbers_that_json_has_not_do_not_pass_for_others() -> None:
    """Scores are made finite where plans are made; one that slipped through is an error, not a 0."""
    plan = ReloadPlan(
        chunks=(
            PlannedChunk(
                chunk=0,
                span=Span(start_s=0, end_s=1),
                level=types.Level.H,
                score=-math.inf,
                reason="rest",
                size_bytes=1,
            ),
        ),
        scorer="calibrated",
        detail=Detail(),
    )
    with pytest.raises(ValueError, match="score"):
        value(ReloadPlan, dump(plan))


def test_an_unknown_field_of_a_newer_service_is_no_error() -> None:
    told = b'{"video": "v", "freed_bytes": 3, "new_in_version_9": true}'
    assert TypeAdapter(messages.Deleted).validate_json(told) == messages.Deleted(video="v", freed_bytes=3)


def test_a_whole_answer_is_that_of_its_events() -> None:
    failed = AnswerFailed(part="p1", problem=Problem(code="kv_missing", title="", detail="gone", status=503))
    done = AnswerCompleted(part="p0", text="Yes.")
    parts = tuple(Part(id=f"p{i}", video=f"v{i}") for i in range(3))
    whole = Answers.of([AnswerCreated(id="a", parts=parts), failed, done])
    assert whole.id == "a"
    first, second, third = whole.parts
    assert first == PartResult(part="p0", video="v0", completed=done)
    assert second == PartResult(part="p1", video="v1", problem=failed.problem)
    assert third.problem and third.problem.code == "connection_lost"
    with pytest.raises(messages.ConnectionLost):
        Answers.of([])
