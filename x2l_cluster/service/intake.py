"""How requests become jobs: checked, and durable when this returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from x2l_cluster.engine.grow import check_can_grow
from x2l_cluster.engine.upkeep import check_model, source_of
from x2l_cluster.errors import InvalidInput, SourceMissing, UnknownVideo, X2LError
from x2l_cluster.messages import Job
from x2l_cluster.service.fetch import check_url
from x2l_cluster.service.requests import IndexRequest
from x2l_cluster.service.work import IndexWork
from x2l_cluster.service.workers import ModelFacts
from x2l_cluster.state.jobs import JobQueue
from x2l_cluster.stores import Stores
from x2l_cluster.types import Manifest, Recipe, SourceRef, recipe_fields


class Intake:
    """Puts work into a queue.

    Args:
        model: what is known of the model of those who will do the work; None while nobody has said.
        roots: folders that jobs may read files from.
        most_jobs: of one tenant that have not ended.
    """

    def __init__(
        self,
        stores: Stores,
        queue: JobQueue,
        *,
        model: Callable[[], ModelFacts | None],
        roots: Sequence[Path] = (),
        most_jobs: int | None = None,
    ) -> None:
        self._stores, self._queue, self._model = stores, queue, model
        self._roots, self._most_jobs = tuple(roots), most_jobs

    def submit(self, tenant: str, request: IndexRequest) -> Job:
        """See :meth:`Service.submit`. Raises SourceMissing too."""
        try:
            return self._submit(tenant, request)
        except X2LError:
            if request.source is not None:
                self._forget(tenant, request.source)
            raise

    def retry(self, tenant: str, job: str) -> Job:
        """Raises UnknownJob, JobConflict, QuotaExceeded."""
        return self._queue.retry(tenant, job, most_active=self._most_jobs)

    def _submit(self, tenant: str, request: IndexRequest) -> Job:
        self._check_recipe(recipe_fields(request.recipe))
        if request.url is not None:
            check_url(request.url)
        anew = request.reindex is not None
        work = self._again(tenant, request) if anew else IndexWork.of(request, self._roots)
        video = work.video
        if request.append:
            assert video is not None
            self._check_growing(tenant, video)
        if request.source is not None:
            if not self._stores.sources.exists(tenant, request.source):
                raise SourceMissing(f"source {request.source.id} is not kept; upload the video again")
            if not request.append:
                video = self._stores.video_id(tenant, request.source.id, request.video)
        return self._queue.submit(
            tenant,
            work.to_dict(),
            key=request.idempotency_key,
            priority=request.priority,
            video=video,
            most_active=self._most_jobs,
        )

    def _check_recipe(self, fields: Mapping[str, Any]) -> None:
        """What only the model could object to is found by the worker, while it is not known. Raises InvalidRecipe."""
        model = self._model()
        if model is not None:
            model.recipe(**fields)
        else:
            Recipe.of(**{**fields, "family": "", "weights": ""})

    def _check_growing(self, tenant: str, video: str) -> None:
        """Raises UnknownVideo, ModelMismatch, InvalidInput."""
        model = self._model()
        known = self._stores.manifest(tenant, video, model.spec.weights if model else None)
        if model is not None:
            check_model(known, model.spec)
        check_can_grow(known)

    def _again(self, tenant: str, request: IndexRequest) -> IndexWork:
        """Raises UnknownVideo, SourceMissing."""
        assert request.reindex is not None
        try:
            old = self._stores.state.manifest(tenant, request.reindex)
        except InvalidInput:
            raise UnknownVideo(f"no video {request.reindex!r} is here") from None
        source = source_of(old)
        if not self._stores.sources.exists(tenant, source):
            raise SourceMissing(f"the original of video {old.video} is not kept any more; upload it again")
        recipe = {"sampling": old.recipe.to_dict()["sampling"]} | dict(request.recipe)
        return IndexWork(source=source, video=old.video, recipe=recipe, replaces=True)

    def _forget(self, tenant: str, source: SourceRef) -> None:
        """A kept source that nothing can name any more. Jobs do not tell what they were given, so any might."""
        with suppress(X2LError):
            waiting = any(not job.state.final for job in self._queue.jobs(tenant))
            if not waiting and not self._stores.source_in_use(tenant, source.id):
                self._stores.sources.delete(tenant, source)


def repair(stores: Stores, queue: JobQueue, manifest: Manifest, *, priority: int = 0) -> None:
    """Queues what makes again what an index has lost. Once an epoch, however many ask.

    One that was deleted or replaced meanwhile stays gone.
    """
    if manifest.source is None or not _is_kept(stores, manifest):
        return
    recipe = manifest.recipe.to_dict()
    work = IndexWork(source=manifest.source, video=manifest.video, recipe=recipe, repair=True)
    key = f"repair/{manifest.video}/{manifest.recipe.digest}/{manifest.epoch}"
    with suppress(X2LError):  # who asked is told of the loss anyway
        queue.submit(manifest.tenant, work.to_dict(), key=key, priority=priority, video=manifest.video)


def _is_kept(stores: Stores, manifest: Manifest) -> bool:
    try:
        stores.state.manifest(manifest.tenant, manifest.video, manifest.recipe.digest)
    except X2LError:
        return False
    return True
