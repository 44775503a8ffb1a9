"""What is indexed: the videos of a tenant, their chunks and frames. Needs stores and no model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from x2l_cluster.engine.upkeep import source_of
from x2l_cluster.errors import InvalidInput, UnknownVideo
from x2l_cluster.messages import Chunk, Video
from x2l_cluster.service.views import chunk_of, newest, video_of
from x2l_cluster.stores import Stores
from x2l_cluster.types import Manifest
from x2l_cluster.video import frame_at
from x2l_cluster.video.evidence import FORMATS, encode_image

T = TypeVar("T")


class Catalogue:
    """Looks things up. Where a video is named, an id that can be none is an unknown one.

    ``weights`` are those of the service's model: of a video with several indexes, its own is meant; None where they are
    not known (yet), then the newest is.
    """

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def videos(self, tenant: str, weights: str | None) -> list[Video]:
        """By id."""
        return [video_of(record) for record in newest(self._stores.state.videos(tenant), weights)]

    def manifest(self, tenant: str, video: str, weights: str | None) -> Manifest:
        """Raises UnknownVideo."""
        return _known(partial(self._stores.manifest, tenant, video, weights), video)

    def video(self, tenant: str, video: str, weights: str | None) -> Video:
        """Raises UnknownVideo."""
        return video_of(self.manifest(tenant, video, weights))

    def chunks(self, tenant: str, video: str, weights: str | None) -> list[Chunk]:
        """Raises UnknownVideo."""
        return [chunk_of(row) for row in self.manifest(tenant, video, weights).chunks]

    def frame(self, tenant: str, video: str, weights: str | None, time_s: float, format: str) -> tuple[bytes, float]:
        """See :meth:`Service.frame`."""
        if format not in FORMATS:
            raise InvalidInput(f"image format {format!r} is not one of {', '.join(FORMATS)}")
        manifest = self.manifest(tenant, video, weights)
        with self._stores.sources.open_local(tenant, source_of(manifest)) as local:
            frame, shown_s = frame_at(local, time_s)
        return encode_image(frame, format), shown_s

    def delete(self, tenant: str, video: str) -> int:
        """Bytes freed. Raises UnknownVideo."""
        return _known(partial(self._stores.delete_video, tenant, video), video)


def _known(find: Callable[[], T], video: str) -> T:
    try:
        return find()
    except InvalidInput:
        raise UnknownVideo(f"no video {video!r} is here") from None
