"""Where every token of a video sits: ids, M-RoPE coordinates, chunks, groups, and who may see whom.

The layout depends on the groups' times alone, so all videos of a training batch share one. Tokens are laid out
as ``[prefix | chunk 0 | chunk 1 | …]`` with every chunk padded to the same number of slots, which makes chunks a
batch dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch

RAW, FINE, COARSE, UNIFORM = range(4)  # what a question may see of a chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Special:
    """Token ids the layout needs."""

    vision_start: int
    vision_end: int
    video: int
    pad: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One video's token layout. P prefix tokens, C chunks of S slots, G groups of ``rows x cols`` visual tokens.

    ``ids (P+C*S,)``, ``positions (3, P+C*S)`` float, ``valid (P+C*S,)``, ``visual (G, rows*cols)`` slots,
    ``stamps (C, T)`` slots of each chunk's first timestamp (-1: none), ``group_chunk (G,)``,
    ``coords_fine/coarse/uniform (3, entries)`` mean coordinates of pooled entries, ``end`` the next position.
    """

    prefix: int
    chunks: int
    slots: int
    groups: int
    rows: int
    cols: int
    end: int
    ids: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor
    visual: torch.Tensor
    stamps: torch.Tensor
    group_chunk: torch.Tensor
    coords_fine: torch.Tensor
    coords_coarse: torch.Tensor
    coords_uniform: torch.Tensor

    def to(self, device: str | torch.device) -> Layout:
        tensors = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), torch.Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


def timestamp_text(time_s: float) -> str:
    """The stock processor's words for a group's time."""
    return f"<{time_s:.1f} seconds>"


def make_layout(
    prefix_ids: Sequence[int],
    group_times_s: Sequence[float],
    encode: Callable[[str], list[int]],
    special: Special,
    *,
    chunk_groups: int = 8,
    rows: int = 4,
    cols: int = 4,
    round_to: int = 8,
) -> Layout:
    """The layout of a video whose groups have these mean times; positions as stock ``get_rope_index`` gives them."""
    visual_n = rows * cols
    at = len(prefix_ids)
    bodies: list[list[tuple[int, tuple[float, float, float]]]] = []
    visual_local: list[tuple[int, int]] = []  # (chunk, slot of the first visual token)
    stamp_len: list[int] = []
    for g, time_s in enumerate(group_times_s):
        if g % chunk_groups == 0:
            bodies.append([])
        body = bodies[-1]
        stamp = encode(timestamp_text(time_s))
        if g % chunk_groups == 0:
            stamp_len.append(len(stamp))
        for token in [*stamp, special.vision_start]:
            body.append((token, (at, at, at)))
            at += 1
        visual_local.append((len(bodies) - 1, len(body)))
        body += [(special.video, (at, at + r, at + c)) for r in range(rows) for c in range(cols)]
        at += max(rows, cols)
        body.append((special.vision_end, (at, at, at)))
        at += 1
    p, c = len(prefix_ids), len(bodies)
    s = -(-max(map(len, bodies)) // round_to) * round_to
    total = p + c * s
    ids = torch.full((total,), special.pad)
    positions = torch.zeros(3, total)
    valid = torch.zeros(total, dtype=torch.bool)
    ids[:p] = torch.tensor(list(prefix_ids))
    positions[:, :p] = torch.arange(p)
    valid[:p] = True
    for i, body in enumerate(bodies):
        here = slice(p + i * s, p + i * s + len(body))
        ids[here] = torch.tensor([token for token, _ in body])
        positions[:, here] = torch.tensor([xyz for _, xyz in body], dtype=torch.float32).T
        valid[here] = True
    visual = torch.tensor([[p + chunk * s + slot + k for k in range(visual_n)] for chunk, slot in visual_local])
    width = max(stamp_len)
    stamps = torch.full((c, width), -1)
    for i, n in enumerate(stamp_len):
        stamps[i, :n] = p + i * s + torch.arange(n)
    grid = positions[:, visual].view(3, len(visual_local), rows, cols)
    return Layout(
        prefix=p, chunks=c, slots=s, groups=len(visual_local), rows=rows, cols=cols, end=at, ids=ids,
        positions=positions, valid=valid, visual=visual, stamps=stamps,
        group_chunk=torch.tensor([chunk for chunk, _ in visual_local]),
        coords_fine=pool_grid(grid, 1, 2).flatten(1), coords_coarse=grid.mean((-1, -2)),
        coords_uniform=pool_grid(grid, 2, 2).flatten(1),
    )  # fmt: skip


def pool_grid(grid: torch.Tensor, high: int, wide: int) -> torch.Tensor:
    """Means over ``high x wide`` cells of the last two dimensions (both must divide)."""
    *lead, rows, cols = grid.shape
    return grid.view(*lead, rows // high, high, cols // wide, wide).mean((-3, -1))


def chunk_mask(layout: Layout) -> torch.Tensor:
    """Who sees whom in the chunked prefill: bool ``(C, S, P + G + C*T + S)``.

    Keys are ``[prefix | coarse entry of every group | first timestamp of every chunk | the chunk itself]``; a
    chunk sees the prefix, the coarse form of earlier chunks, and itself causally.
    """
    c, s, device = layout.chunks, layout.slots, layout.ids.device
    chunk = torch.arange(c, device=device)
    coarse = layout.group_chunk[None] < chunk[:, None]
    width = layout.stamps.shape[1]
    stamps = (chunk.repeat_interleave(width)[None] < chunk[:, None]) & (layout.stamps.view(1, -1) >= 0)
    past = torch.cat([torch.ones(c, layout.prefix, dtype=torch.bool, device=device), coarse, stamps], 1)
    own = torch.ones(s, s, dtype=torch.bool, device=device).tril()[None] & layout.valid[layout.prefix :].view(c, 1, s)
    return torch.cat([past[:, None].expand(c, s, -1), own], 2)


def question_visibility(layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Which keys a chunk's state opens: ``(table (4, K) bool, chunk (K,))``, K over
    ``[prefix | raw | fine | coarse | uniform]``; the prefix is open in every state and counted to chunk 0."""
    device, p = layout.ids.device, layout.prefix
    raw_n, g = layout.chunks * layout.slots, layout.groups
    is_visual = torch.zeros(p + raw_n, dtype=torch.bool, device=device)
    is_visual[layout.visual.flatten()] = True
    first_stamp = torch.zeros_like(is_visual)
    first_stamp[layout.stamps[layout.stamps >= 0]] = True
    anchor = layout.valid & ~is_visual
    anchor[:p] = True
    first_stamp[:p] = True
    fine_n, uniform_n = layout.coords_fine.shape[1], layout.coords_uniform.shape[1]

    def row(tokens: torch.Tensor, opened: int) -> torch.Tensor:
        flags = [
            torch.full((n,), k == opened, device=device) for k, n in ((FINE, fine_n), (COARSE, g), (UNIFORM, uniform_n))
        ]
        return torch.cat([tokens, *flags])

    table = torch.stack(
        [row(layout.valid, RAW), row(anchor, FINE), row(first_stamp, COARSE), row(first_stamp, UNIFORM)]
    )
    chunk = torch.cat([
        torch.zeros(p, dtype=torch.long, device=device),
        torch.arange(layout.chunks, device=device).repeat_interleave(layout.slots),
        layout.group_chunk.repeat_interleave(fine_n // g), layout.group_chunk,
        layout.group_chunk.repeat_interleave(uniform_n // g),
    ])  # fmt: skip
    return table, chunk


def question_mask(layout: Layout, states: torch.Tensor, length: int) -> torch.Tensor:
    """Bool ``(B, Q*length, K + Q*length)`` for ``states (B, Q, C)``: the opened keys, then the question's own past."""
    b, q, _ = states.shape
    table, chunk = question_visibility(layout)
    k = len(chunk)
    seen = table.to(states.device)[states.long()[:, :, chunk], torch.arange(k, device=states.device)]
    seen = seen[:, :, None].expand(b, q, length, k).reshape(b, q * length, k)
    index = torch.arange(q * length, device=states.device)
    own = (index[:, None] // length == index[None] // length) & (index[:, None] >= index[None])
    return torch.cat([seen, own[None].expand(b, -1, -1)], 2)
