"""A large block in parts: ranges of layers, of heads where one layer is too much, of entries where one head is.

Early layers come first, so they can be in use while late ones are on the wire. What all entries share (coordinates,
counts, runs) comes with the first stripe. A small block is one stripe, and that is the block itself.

Does no I/O and knows no bytes; :mod:`x2l_cluster.kv.codec` gives every stripe its stored form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import lcm
from typing import Final, NamedTuple

from torch import Tensor

from x2l_cluster.kv.block import KVBlock, Quantised, Run

STRIPE_BYTES: Final = 768 << 10
"""What a stripe takes at most. Transfers are fastest at 0.5 to 1 MiB and four times slower at 8; never exactly 1 MiB,
which just misses an allocator's size class once anything is put in front of it."""

_AROUND: Final = 4096
"""What a blob takes beside its tensors (preamble, header, description, fillings), at most."""

Box = tuple[slice, slice, slice]
"""Layers, heads and entries of a stripe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How a block is cut into stripes, each as large as the others, give or take one.

    Attributes:
        whole: layers, heads and entries of the block.
        parts: into how many ranges each of them is cut.
        step: entries are cut at multiples of it: no scale belongs to two stripes.
    """

    whole: tuple[int, int, int]
    parts: tuple[int, int, int] = (1, 1, 1)
    step: int = 1

    @classmethod
    def of(cls, block: KVBlock, target_bytes: int) -> Cut:
        """The coarsest cut with stripes of at most ``target_bytes``, if what all entries share leaves room for that."""
        layers, heads, entries = block.keys.shape[:3]
        whole = Cut(whole=(layers, heads, entries))
        if block.nbytes + 6 * 4 * len(block.runs) + _AROUND <= target_bytes or not entries:
            return whole
        body = block.keys.nbytes + block.values.nbytes
        shared = block.nbytes - body + 6 * 4 * len(block.runs) + _AROUND
        room = max(target_bytes - shared, target_bytes // 2)
        layer, head = body // layers, body // (layers * heads)
        if layer <= room:
            return replace(whole, parts=(_ranges(layers, room // layer), 1, 1))
        if head <= room:
            return replace(whole, parts=(layers, _ranges(heads, room // head), 1))
        step = lcm(_step(block.keys), _step(block.values))
        steps = -(-entries // step)
        return replace(whole, parts=(layers, heads, _ranges(steps, max(1, room // -(-head // steps)))), step=step)

    @property
    def stripes(self) -> int:
        layers, heads, entries = self.parts
        return layers * heads * entries

    @property
    def is_possible(self) -> bool:
        """Whether every range holds something, as those of :meth:`of` do."""
        layers, heads, entries = self.whole
        sizes = (layers, heads, -(-entries // self.step) if self.step > 0 else 0)
        return self.stripes == 1 or all(1 <= parts <= size for parts, size in zip(self.parts, sizes, strict=True))

    def box(self, stripe: int) -> Box:
        """What a stripe holds of the block."""
        _, heads, entries = self.parts
        rest, third = divmod(stripe, entries)
        first, second = divmod(rest, heads)
        steps = -(-self.whole[2] // self.step)
        start, stop = _range(steps, entries, third)
        return (
            slice(*_range(self.whole[0], self.parts[0], first)),
            slice(*_range(self.whole[1], heads, second)),
            slice(start * self.step, min(stop * self.step, self.whole[2])),
        )


class Shared(NamedTuple):
    """What all stripes of a block share; shapes as in :class:`~x2l_cluster.kv.block.KVBlock`."""

    coords: Tensor
    counts: Tensor
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stripe:
    """One part of a block.

    Attributes:
        index: which of ``cut.stripes``.
        keys, values: (layers, kv_heads, entries, head_dim) of its box.
        shared: of the first stripe, and only there.
    """

    cut: Cut
    index: int
    keys: Tensor | Quantised
    values: Tensor | Quantised
    shared: Shared | None = None

    @property
    def box(self) -> Box:
        return self.cut.box(self.index)

    @property
    def form(self) -> tuple[object, ...]:
        """What is the same in all stripes of a block."""
        return (self.cut, _form(self.keys), _form(self.values))


def split(block: KVBlock, target_bytes: int = STRIPE_BYTES) -> Iterator[Stripe]:
    """The stripes of a block in order, as views of it."""
    cut = Cut.of(block, target_bytes)
    for index in range(cut.stripes):
        yield Stripe(
            cut=cut,
            index=index,
            keys=_part(block.keys, cut.box(index)),
            values=_part(block.values, cut.box(index)),
            shared=None if index else Shared(block.coords, block.counts, block.runs),
        )


def join(stripes: Iterable[Stripe]) -> KVBlock:
    """The block of all its stripes, in order; a single one is taken as it is, several are copied together."""
    keys: Tensor | Quantised | None = None
    values: Tensor | Quantised | None = None
    shared: Shared | None = None
    for stripe in stripes:
        if stripe.shared is not None:
            shared = stripe.shared
        if stripe.cut.stripes == 1:
            keys, values = stripe.keys, stripe.values
            continue
        if keys is None or values is None:
            keys, values = (_room(part, stripe.cut) for part in (stripe.keys, stripe.values))
        _place(keys, stripe.keys, stripe.box)
        _place(values, stripe.values, stripe.box)
    assert keys is not None and values is not None and shared is not None, "a block has at least its first stripe"
    return KVBlock(keys=keys, values=values, coords=shared.coords, counts=shared.counts, runs=shared.runs)


def _ranges(size: int, most: int) -> int:
    """Into how many ranges ``size`` is cut, when one may hold ``most``."""
    return -(-size // most)


def _range(size: int, parts: int, index: int) -> tuple[int, int]:
    return size * index // parts, size * (index + 1) // parts


def _step(part: Tensor | Quantised) -> int:
    return part.group if isinstance(part, Quantised) and part.axis == -2 else 1


def _scales(part: Quantised, box: Box) -> Box:
    """Where the scales of a box are."""
    layers, heads, entries = box
    if part.axis == -2:
        entries = slice(entries.start // part.group, -(-entries.stop // part.group))
    return layers, heads, entries


def _part(part: Tensor | Quantised, box: Box) -> Tensor | Quantised:
    if isinstance(part, Tensor):
        return part[box]
    scales = _scales(part, box)
    return replace(part, codes=part.codes[box], scale=part.scale[scales], low=part.low[scales])


def _room(like: Tensor | Quantised, cut: Cut) -> Tensor | Quantised:
    """Memory for a whole block's keys or values, of which ``like`` is a part."""
    whole: Box = tuple(slice(0, size) for size in cut.whole)  # type: ignore[assignment]

    def room(tensor: Tensor, box: Box) -> Tensor:
        return tensor.new_empty((*(side.stop for side in box), tensor.shape[-1]))

    if isinstance(like, Tensor):
        return room(like, whole)
    scales = _scales(like, whole)
    return replace(like, codes=room(like.codes, whole), scale=room(like.scale, scales), low=room(like.low, scales))


def _place(whole: Tensor | Quantised, part: Tensor | Quantised, box: Box) -> None:
    if isinstance(whole, Tensor):
        assert isinstance(part, Tensor)
        whole[box] = part
        return
    assert isinstance(part, Quantised)
    scales = _scales(part, box)
    whole.codes[box], whole.scale[scales], whole.low[scales] = part.codes, part.scale, part.low


def _form(part: Tensor | Quantised) -> tuple[object, ...]:
    if isinstance(part, Tensor):
        return (part.dtype, part.shape[-1])
    return (part.scale.dtype, part.low.dtype, part.bits, part.axis, part.group, part.shape[-1])
