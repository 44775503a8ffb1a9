"""Reading ahead: each blob once, few at a time, under one deadline; whatever is wrong with a part is wrong with all."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.blocks import raw_block, same
from x2l_cluster.engine.read import BASE_S, READERS, Reader
from x2l_cluster.errors import (
    BlockCorrupt,
    BlockMissing,
    KVError,
    ManifestCorrupt,
    StoreLate,
    StoreUnavailable,
    UnknownVideo,
)
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.kv.codec import decode_block, encode, encode_stripe, pack, ref_of, ref_of_all
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.segments import pack_segment
from x2l_cluster.kv.store import ANY, Fetched, Want
from x2l_cluster.kv.stripes import split
from x2l_cluster.types import BlockKey, BlockRef, ChunkRow, Kind, Manifest, Packed, Recipe, Span, Tier, VideoInfo

WAIT_S = 30.0
TARGET = 9_000


class Watched(MemoryKV):
    """Memory that notes what is asked for, and does before what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[BlockKey] = []
        self.wants: list[Want] = []
        self.before: Callable[[BlockKey], None] = lambda _: None
        self._noting = threading.Lock()

    def fetch(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> Fetched:
        with self._noting:
            self.asked.append(key)
            self.wants.append(want)
        self.before(key)
        return super().fetch(key, into, want=want)


class Film:
    """A manifest of a few chunks, their blobs in a store."""

    def __init__(self, chunks: int = 3) -> None:
        self.kv = Watched()
        self.blocks = [raw_block(seed=n, layers=3) for n in range(chunks)]
        manifest = Manifest(
            tenant="ada",
            video="v1",
            recipe=Recipe(family="tiny", weights="w"),
            epoch=1,
            info=VideoInfo(duration_s=1.0, width=1, height=1, fps=1.0),
        )
        rows = []
        for index, block in enumerate(self.blocks):
            refs = {kind: self._put(manifest, index, kind, block) for kind in (Kind.L, Kind.H)}
            rows.append(_row(index, refs))
        self.manifest = replace(manifest, chunks=tuple(rows))

    def _put(self, manifest: Manifest, index: int, kind: Kind, block: KVBlock) -> BlockRef:
        blank = BlockRef(kind=kind, epoch=1, size_bytes=0, checksum="", entries=0)
        refs = []
        for stripe in split(block, TARGET if kind is Kind.L else 1 << 20):
            key = manifest.key(blank, index, stripe.index)
            blob = encode_stripe(stripe, key)
            self.kv.put(key, blob)
            refs.append(ref_of(blob))
        return ref_of_all(refs)

    def packed(self) -> Manifest:
        """The same manifest once its coarse blocks are packed; the blobs have moved."""
        rows, old = self.manifest.chunks, [row.blocks[Kind.H] for row in self.manifest.chunks]
        front = Packed(epoch=2, chunk=0, offset=0)
        loose = [self.manifest.key(ref, row.index) for ref, row in zip(old, rows, strict=True)]
        (key,) = self.manifest.keys(replace(old[0], packed=front), 0)
        segment, offsets = pack_segment([self.kv.get(one) for one in loose], key)
        self.kv.put(key, segment)
        self.kv.delete(loose)
        return replace(
            self.manifest,
            chunks=tuple(
                replace(row, blocks={**row.blocks, Kind.H: replace(ref, packed=replace(front, offset=offset))})
                for row, ref, offset in zip(rows, old, offsets, strict=True)
            ),
        )

    def read(self, reader: Reader, kind: Kind, manifest: Manifest | None = None) -> list[KVBlock | KVError]:
        """Every chunk at this level, in one batch, or what it cannot be had for."""
        manifest = manifest or self.manifest
        found: list[KVBlock | KVError] = []
        with reader.batch(manifest, [(row, kind) for row in manifest.chunks]) as batch:
            for row in manifest.chunks:
                try:
                    found.append(batch.use(row, kind, decode_block))
                    assert batch.tier is Tier.HOST
                except KVError as error:
                    found.append(error)
        return found

    def is_sound(self, found: list[KVBlock | KVError]) -> bool:
        return all(isinstance(got, KVBlock) and same(got, block) for got, block in zip(found, self.blocks, strict=True))


def _row(index: int, refs: dict[Kind, BlockRef]) -> ChunkRow:
    return ChunkRow(
        index=index,
        span=Span(start_s=index, end_s=index + 1),
        frames=1,
        position_start=0.0,
        position_end=1.0,
        raw_entries=1,
        blocks=dict(refs),
    )


@pytest.fixture
def film() -> Film:
    return Film()


def test_every_stripe_is_asked_for_once_in_order_and_with_its_size(film: Film) -> None:
    with Reader(film.kv) as reader:
        assert film.is_sound(film.read(reader, Kind.L))
    stripes = film.manifest.chunks[0].blocks[Kind.L].stripes
    assert stripes > 2
    assert Counter(film.kv.asked) == Counter(key for key in film.manifest.named if key.kind == Kind.L)
    assert all(want.size_bytes and want.size_bytes < 2 * TARGET for want in film.kv.wants)
    assert all(want.within_s is not None and want.within_s <= BASE_S for want in film.kv.wants)


def test_a_segment_is_asked_for_once_for_all_that_lies_in_it(film: Film) -> None:
    packed = film.packed()
    film.kv.asked.clear()
    with Reader(film.kv) as reader:
        assert film.is_sound(film.read(reader, Kind.H, packed))
    assert len(film.kv.asked) == 1


def test_few_are_asked_for_at_once_and_those_at_once() -> None:
    """All readers must be inside before one goes on; never is there one more."""
    film, inside, most = Film(8), threading.Barrier(READERS), [0, 0]
    lock = threading.Lock()

    def before(key: BlockKey) -> None:
        with lock:
            most[0] += 1
            most[1] = max(most)
        inside.wait(WAIT_S)
        with lock:
            most[0] -= 1

    film.kv.before = before
    blobs = sum(key.kind == Kind.L for key in film.manifest.named)
    assert blobs % READERS == 0, "the barrier wants company to the last"
    with Reader(film.kv) as reader:
        assert film.is_sound(film.read(reader, Kind.L))
    assert most[1] == READERS


def test_what_is_read_ahead_is_bounded(film: Film) -> None:
    """With nothing used but the first blob, no more is fetched than it and what may be ahead."""
    film = Film(20)
    with Reader(film.kv) as reader:
        rows = film.manifest.chunks
        with reader.batch(film.manifest, [(row, Kind.H) for row in rows]) as batch:
            batch.use(rows[0], Kind.H, decode_block)
    assert len(film.kv.asked) <= 1 + READERS


BREAK: dict[str, tuple[Callable[[Film, BlockKey], object], type[KVError]]] = {
    "missing": (lambda film, key: film.kv.delete([key]), BlockMissing),
    "truncated": (lambda film, key: film.kv.put(key, film.kv.get(key)[:-64]), BlockCorrupt),
    "another's": (lambda film, key: film.kv.put(key, film.kv.get(replace(key, chunk=0))), BlockCorrupt),
    "uncut": (lambda film, key: film.kv.put(key, encode(film.blocks[1], replace(key, stripe=0))), BlockCorrupt),
    "of other content": (lambda film, key: film.kv.put(key, _foreign(key)), BlockCorrupt),
}


def _foreign(key: BlockKey) -> bytearray:
    return [encode_stripe(stripe, replace(key, stripe=0)) for stripe in split(raw_block(seed=9, layers=3), TARGET)][
        key.stripe
    ]


@pytest.mark.parametrize("how", BREAK)
@pytest.mark.parametrize("stripe", [0, 1, -1])
def test_what_is_wrong_with_a_stripe_is_wrong_with_its_block_and_no_other(film: Film, how: str, stripe: int) -> None:
    spoil, error = BREAK[how]
    spoil(film, film.manifest.keys(film.manifest.chunks[1].blocks[Kind.L], 1)[stripe])
    with Reader(film.kv) as reader:
        first, second, third = film.read(reader, Kind.L)
    assert isinstance(second, error)
    assert film.is_sound([first, film.blocks[1], third])


def test_of_a_block_that_failed_no_more_is_asked_for_and_the_rest_is_still_read_ahead() -> None:
    film = Film(2)
    film.blocks = [raw_block(seed=n, layers=24) for n in range(2)]
    rows = [_row(n, {Kind.L: film._put(film.manifest, n, Kind.L, block)}) for n, block in enumerate(film.blocks)]
    manifest = replace(film.manifest, chunks=tuple(rows))
    first, second = (manifest.keys(row.blocks[Kind.L], row.index) for row in rows)
    assert len(first) > 3 * READERS
    film.kv.delete(first[:1])
    with Reader(film.kv) as reader:
        found = film.read(reader, Kind.L, manifest)
    assert isinstance(found[0], BlockMissing)
    assert film.is_sound([film.blocks[0], found[1]])
    assert len(set(film.kv.asked) & set(first)) <= 1 + READERS
    assert Counter(key for key in film.kv.asked if key in second) == Counter(second)


@pytest.mark.parametrize("error", [StoreLate, StoreUnavailable])
def test_a_store_that_does_not_answer_is_not_asked_again(error: type[StoreUnavailable]) -> None:
    film, down = Film(8), threading.Event()

    def before(key: BlockKey) -> None:
        if key.chunk >= 1:
            down.set()
            raise error("it hangs")

    film.kv.before = before
    with Reader(film.kv) as reader:
        first, *rest = film.read(reader, Kind.H)
    assert isinstance(first, KVBlock)
    assert all(type(found) is error for found in rest)
    assert len(film.kv.asked) <= 1 + READERS


def test_one_deadline_holds_for_the_whole_plan(film: Film) -> None:
    """Nothing is asked for once its time is over, and what was not had by then is late."""
    now = [0.0]

    def before(key: BlockKey) -> None:
        if key.chunk == 1:
            now[0] = 1000.0

    film.kv.before = before
    with Reader(film.kv, clock=lambda: now[0]) as reader:
        found = film.read(reader, Kind.L)
        assert isinstance(found[2], StoreLate)
        asked = len(film.kv.asked)
        assert film.is_sound(film.read(reader, Kind.L)), "the next plan has its own"
    assert asked < sum(key.kind == Kind.L for key in film.manifest.named)


def test_who_does_not_answer_at_all_is_not_waited_for_beyond_the_deadline(film: Film) -> None:
    """Even by a store that knows of no deadline."""
    now, stuck = [0.0], threading.Event()

    def before(key: BlockKey) -> None:
        now[0] = BASE_S - 0.01 + 0.1  # all but a moment of the plan's time
        stuck.wait(WAIT_S)

    film.kv.before = before
    with Reader(film.kv, clock=lambda: now[0]) as reader:
        assert all(isinstance(found, StoreLate) for found in film.read(reader, Kind.H))
        stuck.set()


# --- blocks that move -----------------------------------------------------------------------------------------------


def test_a_reader_with_an_older_manifest_finds_what_was_packed_meanwhile(film: Film) -> None:
    packed, looked = film.packed(), []

    def newest(manifest: Manifest) -> Manifest:
        looked.append(manifest)
        return packed

    with Reader(film.kv, newest) as reader:
        film.kv.asked.clear()
        assert film.is_sound(film.read(reader, Kind.H))
    assert len(looked) == 1, "the manifest is read again once, not for every chunk"
    assert sum(key.kind == Kind.segment(Kind.H) for key in film.kv.asked) == 1


def test_packed_in_the_middle_of_a_batch(film: Film) -> None:
    film = Film(12)
    packed: list[Manifest] = []
    rows = film.manifest.chunks
    found: list[KVBlock | KVError] = []
    wanted = [(row, Kind.H) for row in rows]
    with Reader(film.kv, lambda _: packed[0]) as reader, reader.batch(film.manifest, wanted) as batch:
        for row in rows:
            found.append(batch.use(row, Kind.H, decode_block))
            if row.index == 2:
                packed.append(film.packed())
    assert film.is_sound(found)


def test_other_content_is_not_taken_for_what_the_manifest_named(film: Film) -> None:
    packed = film.packed()
    other = replace(packed.chunks[1].blocks[Kind.H], checksum="0" * 16)
    changed = replace(packed.chunks[1], blocks={**packed.chunks[1].blocks, Kind.H: other})
    newest = replace(packed, chunks=(packed.chunks[0], changed))  # chunk 2 is not there at all
    with Reader(film.kv, lambda _: newest) as reader:
        first, second, third = film.read(reader, Kind.H)
    assert isinstance(first, KVBlock)
    assert isinstance(second, BlockMissing)
    assert isinstance(third, BlockMissing)


@pytest.mark.parametrize("error", [UnknownVideo, StoreUnavailable, ManifestCorrupt])
def test_without_a_newer_manifest_what_is_missing_is_missing(film: Film, error: type[Exception]) -> None:
    film.packed()

    def newest(manifest: Manifest) -> Manifest:
        raise error("gone")

    with Reader(film.kv, newest) as reader:
        assert all(isinstance(found, BlockMissing) for found in film.read(reader, Kind.H))


def test_a_row_without_the_kind_is_missing(film: Film) -> None:
    row = film.manifest.chunks[0]
    with (
        Reader(film.kv) as reader,
        reader.batch(film.manifest, [(row, "x-1f")]) as batch,
        pytest.raises(BlockMissing, match="repair"),
    ):
        batch.features(row, "x-1f")


def test_features_are_read_too(film: Film) -> None:
    key = replace(film.manifest.key(film.manifest.chunks[0].blocks[Kind.L], 0), kind="x-1f")
    blob = pack({"coords": film.blocks[0].coords}, {"form": "x"}, key)
    film.kv.put(key, blob)
    row = replace(film.manifest.chunks[0], blocks={"x-1f": ref_of(blob)})
    with Reader(film.kv) as reader, reader.batch(film.manifest, [(row, "x-1f")]) as batch:
        assert batch.features(row, "x-1f").meta == {"form": "x"}
