"""What is indexed: the videos of a tenant, their chunks, frames and moments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from x2l_cluster.engine import VideoEngine
from x2l_cluster.errors import InvalidInput, UnknownVideo
from x2l_cluster.messages import Chunk, Found, Moment, Video
from x2l_cluster.service.requests import SearchRequest
from x2l_cluster.service.views import chunk_of, newest, video_of
from x2l_cluster.types import Manifest
from x2l_cluster.video.evidence import FORMATS, encode_image

T = TypeVar("T")


class Catalogue:
    """Looks things up through an engine. Where a video is named, an id that can be none is an unknown one."""

    def __init__(self, engine: VideoEngine) -> None:
        self._engine = engine

    def videos(self, tenant: str) -> list[Video]:
        """By id."""
        records = self._engine.videos(tenant=tenant)
        return [video_of(record) for record in newest(records, self._engine.lm.spec.weights)]

    def manifest(self, tenant: str, video: str) -> Manifest:
        """Raises UnknownVideo."""
        return _known(partial(self._engine.manifest, video, tenant=tenant), video)

    def video(self, tenant: str, video: str) -> Video:
        """Raises UnknownVideo."""
        return video_of(self.manifest(tenant, video))

    def chunks(self, tenant: str, video: str) -> list[Chunk]:
        """Raises UnknownVideo."""
        return [chunk_of(row) for row in self.manifest(tenant, video).chunks]

    def frame(self, tenant: str, video: str, time_s: float, format: str) -> tuple[bytes, float]:
        """See :meth:`Service.frame`."""
        if format not in FORMATS:
            raise InvalidInput(f"image format {format!r} is not one of {', '.join(FORMATS)}")
        frame, shown_s = self._engine.frame(self.manifest(tenant, video), time_s)
        return encode_image(frame, format), shown_s

    def delete(self, tenant: str, video: str) -> int:
        """Bytes freed. Raises UnknownVideo."""
        return _known(partial(self._engine.delete, video, tenant=tenant), video)

    def search(self, tenant: str, request: SearchRequest) -> Found:
        """Raises UnknownVideo for a video that is named."""
        manifests = []
        for video in request.videos or [video.id for video in self.videos(tenant)]:
            try:
                manifests.append(self.manifest(tenant, video))
            except UnknownVideo:  # of all there are, one may just have been deleted
                if request.videos:
                    raise
        hits, skipped = self._engine.search(request.question, manifests, limit=request.limit)
        return Found(
            moments=tuple(Moment(video=hit.video, chunk=hit.chunk, span=hit.span, score=hit.score) for hit in hits),
            searched=len(manifests) - len(skipped),
            skipped={video: type(error).code for video, error in skipped.items()},
        )


def _known(find: Callable[[], T], video: str) -> T:
    try:
        return find()
    except InvalidInput:
        raise UnknownVideo(f"no video {video!r} is here") from None
