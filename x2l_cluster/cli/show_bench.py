"""What ``x2l bench`` prints."""

from __future__ import annotations

from collections.abc import Mapping
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


def _apart(row: Mapping[str, float] | None) -> str:
    return f"{row['difference']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}]" if row else "–"
