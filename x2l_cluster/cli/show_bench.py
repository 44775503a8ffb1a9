"""What ``x2l bench`` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from x2l_cluster.cli.show import columns, emit, line, out, percent
from x2l_cluster.cli.text import size


def needles(result: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(result)
        return
    kinds = list(result["n"])
    line(f"{result['chunks']} chunks, {result['videos']} videos", style="bold")
    table = columns("policy", *kinds, "kv share", "moved share")
    for name, row in result["policies"].items():
        table.add_row(name, *(percent(row[column]) for column in (*kinds, "kv_share", "moved_share")))
    out.print(table)
    line()
    table = columns("scorer", "recall@1", "@2", "@3", "@1 where coarse is wrong")
    for name, row in result["recall"].items():
        table.add_row(name, *(percent(row[column]) for column in ("1", "2", "3", "given_coarse_wrong")))
    out.print(table)
    line()
    table = columns("points apart (95 %)", *kinds)
    for name, row in result["paired"].items():
        table.add_row(name, *(_apart(row[kind]) for kind in kinds))
    out.print(table)


def reload(result: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(result)
        return
    table = columns("path", "value", "connections", "GB/s")
    for row in result["rows"]:
        table.add_row(row["path"], size(row["value_bytes"]), str(row["connections"]), f"{row['gbps']:.2f}")
    out.print(table)
    line(", ".join(f"{name} {ratio:.2f}" for name, ratio in result["ratios"].items()))


def device(result: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(result)
        return
    line(result["setup"]["device"], style="bold")
    table = columns("from", "GB/s", "quartiles")
    for row in result["rows"]:
        table.add_row(row["path"], f"{row['gbps']:.1f}", f"{row['low_gbps']:.1f}–{row['high_gbps']:.1f}")
    out.print(table)
    line(", ".join(f"{name} {ratio:.2f}" for name, ratio in result["ratios"].items()))


def serve(result: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(result)
        return
    closed, opened = result["load"]["closed"], result["load"]["open"]
    table = columns("", f"closed, {closed['people']} people", f"open, {opened['rate_per_s']:.2f} questions a second")
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "answered": lambda row: f"{row['answered']} of {row['questions']}",
        "failed": lambda row: ", ".join(f"{n} {code}" for code, n in row["failed"].items()) or "none",
        "degraded": lambda row: f"{row['degraded_share']:.1%}",
        "questions a second": lambda row: f"{row['questions_per_s']:.2f}",
        "tokens a second": lambda row: f"{row['tokens_per_s']:.0f}",
        "first piece of text, p50 / p99": lambda row: _times(row["ttft_s"]),
        "between pieces, p50 / p99": lambda row: _times(row["between_pieces_s"]),
        "whole answer, p50 / p99": lambda row: _times(row["answer_s"]),
        "questions in a decode step": lambda row: "–" if row["decode_batch"] is None else f"{row['decode_batch']:.1f}",
        "fine detail found in": lambda row: (
            ", ".join(f"{tier} {size(found)}" for tier, found in row["fine_bytes_by_tier"].items()) or "–"
        ),
    }
    for name, tell in rows.items():
        table.add_row(name, tell(closed), tell(opened))
    out.print(table)
    line(result["note"])
    if not result["ratios"]:
        return
    line()
    together, tokens = result["batching"]["together"], result["batching"]["tokens"]
    line(f"{together} questions at once against one at a time, {tokens} tokens each, medians of rounds", style="bold")
    for name, ratio in result["ratios"].items():
        line(f"{name} {ratio:.2f}")


def _apart(row: Mapping[str, float] | None) -> str:
    return f"{row['difference']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}]" if row else "–"


def _times(found: Mapping[str, float] | None) -> str:
    return "–" if found is None else f"{found['p50'] * 1e3:.0f} / {found['p99'] * 1e3:.0f} ms"
