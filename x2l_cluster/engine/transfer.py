"""Taking an index from one place to another: out of stores into a file, and out of a file into other stores.

What comes out of a file is believed only as far as it was checked: the file is read once to check all of it, against
the model too, and once more, checked again, to store it. An index that is there already is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from x2l_cluster.engine.pack import Packer
from x2l_cluster.engine.read import Reader
from x2l_cluster.engine.seal import publish, stored
from x2l_cluster.engine.upkeep import check_model
from x2l_cluster.errors import (
    BadArchive,
    BlockCorrupt,
    BlockMissing,
    InvalidInput,
    KVError,
    ManifestConflict,
    UnknownVideo,
    VideoFileNotFound,
    X2LError,
)
from x2l_cluster.kv.blob import rekeyed
from x2l_cluster.kv.codec import Buffer, check, decode_stripes, ref_of, ref_of_all
from x2l_cluster.kv.store import Priority
from x2l_cluster.kv.stripes import STRIPE_BYTES, Stripe
from x2l_cluster.metrics import kind_of
from x2l_cluster.models import VideoLM
from x2l_cluster.state.base import StateStore
from x2l_cluster.stores import Stores
from x2l_cluster.stores.archive import ArchiveReader, ArchiveWriter
from x2l_cluster.types import (
    LAYOUT_VERSION,
    BlockKey,
    BlockRef,
    ChunkRow,
    IndexStatus,
    Kind,
    Manifest,
    check_name,
)

Told = Callable[[int, int | None], None]
"""Takes how many chunks are done, and how many there are, if that is known."""
_NEEDED: Final = (Kind.H,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that was written. ``coarse``: chunks whose fine block was not there any more."""

    manifest: Manifest
    size_bytes: int
    coarse: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """An index that is here by now. ``new``: it was not, before."""

    manifest: Manifest
    new: bool


# --- out ------------------------------------------------------------------------------------------------------------


def export_index(stores: Stores, manifest: Manifest, path: Path, *, told: Told = lambda *_: None) -> Exported:
    """Writes an index into a file, which is there whole or not at all. Blobs are checked on their way.

    What questions can do without (fine blocks, score indexes) is left out where a store has lost it. A block is in
    memory at a time, and a few blobs that are read ahead.

    Raises ManifestConflict while it is being indexed, KVError, BlockMissing or BlockCorrupt without coarse blocks,
    InvalidInput when the file cannot be written.
    """
    if manifest.status is not IndexStatus.READY:
        raise ManifestConflict(f"video {manifest.video} is being indexed: wait until it is ready")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    coarse = 0
    try:
        try:
            with open(part, "xb") as file:
                writer = ArchiveWriter(file, manifest)
                for row, blobs in _blobs(stores, manifest):
                    writer.row(row, blobs)
                    coarse += Kind.L not in row.blocks
                    told(row.index + 1, len(manifest.chunks))
                writer.end()
                file.flush()
                os.fsync(file.fileno())
            size = part.stat().st_size
            os.replace(part, path)
        except OSError as error:
            raise InvalidInput(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return Exported(manifest=manifest, size_bytes=size, coarse=coarse)


def _blobs(stores: Stores, manifest: Manifest) -> Iterator[tuple[ChunkRow, list[Buffer]]]:
    """Rows as they are written, with their blobs."""

    def newest(known: Manifest) -> Manifest:
        return stores.state.manifest(known.tenant, known.video, known.recipe.digest)

    wanted = [(row, kind) for row in manifest.chunks for kind in sorted(row.blocks)]
    with (
        Reader(stores.kv, newest, priority=Priority.PREFETCH) as reader,
        reader.batch(manifest, wanted, in_time=False) as batch,
    ):
        for row in manifest.chunks:
            blobs: list[Buffer] = []
            blocks: dict[str, BlockRef] = {}
            for kind in sorted(row.blocks):
                try:
                    blobs += batch.use(row, kind, _checked)
                except (BlockMissing, BlockCorrupt):
                    if kind in _NEEDED:
                        raise
                    continue
                blocks[kind] = replace(row.blocks[kind], packed=None)
            yield replace(row, blocks=blocks), blobs


def _checked(blobs: Iterator[Buffer], key: BlockKey, ref: BlockRef) -> list[bytes]:
    kept = [bytes(blob) for blob in blobs]
    check(kept, key, ref)
    return kept


# --- in -------------------------------------------------------------------------------------------------------------


def import_index(
    stores: Stores,
    lm: VideoLM,
    path: Path,
    *,
    tenant: str,
    video: str | None = None,
    stripe_bytes: int = STRIPE_BYTES,
    told: Told = lambda *_: None,
) -> Imported:
    """Takes an exported index in. What is there already, with equal blocks, is no new work.

    Args:
        video: an id of your choice; by default that of the same content here, else the one it had.

    Raises VideoFileNotFound, BadArchive, ModelMismatch (another model made it), InvalidInput when that id is another
    file's, ManifestConflict when other blocks are here under the same recipe, KVError; nothing is left of it then.
    """
    with _opened(path) as file:
        there = read_index(file, lm)
    return _Import(stores=stores, lm=lm, tenant=tenant, stripe_bytes=stripe_bytes, told=told).run(path, there, video)


def read_index(file: BinaryIO, lm: VideoLM) -> Manifest:
    """Checks all of an exported index, and returns its manifest; blobs lie by themselves.

    Raises BadArchive and ModelMismatch, and nothing else, whatever the file holds.
    """
    reader = ArchiveReader(file)
    manifest = _of_this_model(reader.manifest, lm)
    rows = []
    for row in reader.rows():
        if Kind.H not in row.blocks or any(kind_of(kind) not in set(Kind) for kind in row.blocks):
            raise BadArchive(f"chunk {row.index} of the exported index has no coarse block, or blocks nobody knows")
        for kind in sorted(row.blocks):
            for _ in _taken(reader, manifest, row, kind, lm):
                pass
        rows.append(row)
    return replace(manifest, chunks=tuple(rows))


def _of_this_model(manifest: Manifest, lm: VideoLM) -> Manifest:
    check_model(manifest, lm.spec)
    if manifest.recipe.layout != LAYOUT_VERSION:
        raise BadArchive(
            f"the exported index has layout {manifest.recipe.layout}, this program reads {LAYOUT_VERSION}: reindex "
            "the video where it was exported, or index its file here"
        )
    return manifest


def _taken(reader: ArchiveReader, manifest: Manifest, row: ChunkRow, kind: str, lm: VideoLM) -> Iterator[bytes]:
    """The blobs of a block, each as soon as it was checked; all of them together only when this has ended."""
    ref = row.blocks[kind]
    key = manifest.key(ref, row.index)
    ready: list[bytes] = []

    def blobs() -> Iterator[bytes]:
        for _ in range(ref.stripes):
            ready.append(reader.blob())
            yield ready[-1]

    try:
        if kind in (Kind.L, Kind.H):
            for stripe in decode_stripes(blobs(), key, ref):
                _check_shape(stripe, lm, row.index)
                yield ready.pop()
        elif ref.stripes == 1:
            (blob,) = blobs()
            check([blob], key, ref)
            yield blob
        else:
            raise BadArchive(f"a score index of chunk {row.index} is in pieces, which it never is: damaged")
    except BlockCorrupt as error:
        raise BadArchive(f"a block of the exported index is damaged: {error}") from None


def _check_shape(stripe: Stripe, lm: VideoLM, chunk: int) -> None:
    spec = lm.spec
    layers, heads, _ = stripe.cut.whole
    dims = {stripe.keys.shape[3], stripe.values.shape[3]}
    axes = stripe.shared.coords.shape[1] if stripe.shared is not None else spec.axes
    if (layers, heads, dims, axes) != (spec.layers, spec.kv_heads, {spec.head_dim}, spec.axes):
        raise BadArchive(
            f"a block of chunk {chunk} has {layers} layers of {heads} heads of {dims} on {axes} axes, which is no "
            f"block of {spec.weights}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Import:
    """One import, of a file that was checked."""

    stores: Stores
    lm: VideoLM
    tenant: str
    stripe_bytes: int
    told: Told

    def run(self, path: Path, there: Manifest, video: str | None) -> Imported:
        state = self.stores.state
        name = self._name(there, video)
        known = _find(state, self.tenant, name, there.recipe.digest)
        if known is not None:
            self._check_same(known, there)
            if known.status is IndexStatus.READY:
                self._bind(there, name)
                return Imported(manifest=known, new=False)
        begun = state.begin(self.tenant, name, there.recipe, there.info, there.source)
        try:
            self._store(path, there, begun)
            made = state.finish(self.tenant, name, there.recipe.digest, begun.epoch, there.info)
        except BaseException:
            if known is None:
                self._withdraw(begun)
            raise
        self._bind(there, name)
        return Imported(manifest=self._packed(made), new=True)

    def _name(self, there: Manifest, video: str | None) -> str:
        state = self.stores.state
        bound = state.find(self.tenant, there.source.id) if there.source else None
        name = check_name("video id", video or bound or there.video)
        other = _find(state, self.tenant, name, None)
        if other is not None and (other.source and other.source.id) != (there.source and there.source.id):
            raise InvalidInput(
                f"video id {name} is taken by another file: choose another with --id, or delete that one"
            )
        return name

    def _check_same(self, known: Manifest, there: Manifest) -> None:
        """Of what both have, the payloads must be equal."""
        if known.status is IndexStatus.GROWING:
            raise ManifestConflict(
                f"video {known.video} is here and grows: wait until it is ready, or choose another id"
            )
        for mine, theirs in zip(known.chunks, there.chunks, strict=False):
            kinds = mine.blocks.keys() & theirs.blocks.keys()
            same = all(_content(mine.blocks[kind]) == _content(theirs.blocks[kind]) for kind in kinds)
            if not same or replace(mine, blocks={}) != replace(theirs, blocks={}):
                raise ManifestConflict(
                    f"video {known.video} is here with other blocks (chunk {mine.index}): choose another id with --id, "
                    "or delete it first"
                )
        if len(known.chunks) > len(there.chunks) or (
            known.status is IndexStatus.READY and len(known.chunks) < len(there.chunks)
        ):
            raise ManifestConflict(f"video {known.video} is here with {len(known.chunks)} chunks: choose another id")

    def _store(self, path: Path, there: Manifest, begun: Manifest) -> None:
        place = (begun.tenant, begun.video, begun.recipe.digest, begun.epoch)
        with _opened(path) as file:
            reader = ArchiveReader(file)
            if reader.manifest != replace(there, chunks=()):
                raise BadArchive(f"{path} has changed while it was read: try again")
            for row, expected in zip(reader.rows(), there.chunks, strict=True):
                if row != expected:
                    raise BadArchive(f"{path} has changed while it was read: try again")
                blocks: dict[str, BlockRef] = {}
                with stored(self.stores.kv) as put:
                    for kind in sorted(row.blocks):
                        refs = []
                        for stripe, blob in enumerate(_taken(reader, there, row, kind, self.lm)):
                            key = begun.key(replace(row.blocks[kind], epoch=begun.epoch), row.index, stripe)
                            mine = rekeyed(blob, key)
                            if row.index >= len(begun.chunks):
                                put.append(key)
                                self.stores.kv.put(key, mine)
                            refs.append(ref_of(mine))
                        blocks[kind] = ref_of_all(refs)
                made = replace(row, blocks=blocks)
                if row.index >= len(begun.chunks):
                    publish(self.stores.kv, put, lambda made=made: self.stores.state.seal(*place, made))  # type: ignore[misc]
                self.told(row.index + 1, len(there.chunks))

    def _packed(self, made: Manifest) -> Manifest:
        """As after indexing: an index is as good in pieces, only slower to read."""
        with Reader(self.stores.kv, priority=Priority.WRITE) as reader:
            packer = Packer(kv=self.stores.kv, state=self.stores.state, reader=reader, segment_bytes=self.stripe_bytes)
            with suppress(KVError):
                return packer.pack(made)
        return made

    def _bind(self, there: Manifest, name: str) -> None:
        if there.source is not None:
            self.stores.state.bind(self.tenant, there.source.id, name)

    def _withdraw(self, begun: Manifest) -> None:
        """Takes back an index that did not become whole, unless it is somebody else's by now."""
        with suppress(X2LError):
            now = _find(self.stores.state, begun.tenant, begun.video, begun.recipe.digest)
            if now is not None and now.epoch == begun.epoch and now.status is not IndexStatus.READY:
                self.stores.state.delete(begun.tenant, begun.video, begun.recipe.digest)
            self.stores.sweep(begun.tenant, begun.video)


def _find(state: StateStore, tenant: str, video: str, recipe: str | None) -> Manifest | None:
    try:
        return state.manifest(tenant, video, recipe)
    except UnknownVideo:
        return None


def _content(ref: BlockRef) -> tuple[str, int, int]:
    return ref.checksum, ref.entries, ref.stripes


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise VideoFileNotFound(f"there is no file {path}, or it cannot be read ({error.strerror})") from error
