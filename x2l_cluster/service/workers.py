"""The seam to whoever has the model: what a service needs of it besides answers, and needs no weights to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import torch

from x2l_cluster.engine import VideoEngine
from x2l_cluster.messages import Found
from x2l_cluster.models.base import ModelSpec
from x2l_cluster.select import Calibration
from x2l_cluster.service.requests import SearchRequest
from x2l_cluster.types import Level, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model in numbers: enough to check recipes, to tell its indexes from others, and to estimate.

    Attributes:
        preferred: the recipe it does best with.
        calibration: which heads score; None: there is none.
    """

    spec: ModelSpec
    preferred: Recipe
    calibration: Calibration | None

    @classmethod
    def of(cls, engine: VideoEngine) -> Self:
        return cls(spec=engine.lm.spec, preferred=engine.lm.recipe(), calibration=engine.calibration)

    def recipe(self, **changes: Any) -> Recipe:
        """As :meth:`~x2l_cluster.models.base.VideoLM.recipe`. Raises InvalidRecipe."""
        own = {field.name: getattr(self.preferred, field.name) for field in fields(self.preferred)}
        return self.spec.recipe(**(own | changes | {"dtype": self.preferred.dtype}))

    @property
    def itemsize(self) -> int:
        """Bytes of a number the model computes with."""
        dtype = getattr(torch, self.preferred.dtype)
        assert isinstance(dtype, torch.dtype), dtype
        return dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A full chunk as it would be stored: tokens of a full cache, entries of each level, bytes by kind."""

    tokens: int
    entries: Mapping[Level, int]
    stored_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """How those who do the work are.

    Attributes:
        loaded: somebody has loaded the model.
        answering: questions are taken on.
        indexing: jobs are, or will be as soon as there are some.
        amiss: what a person should see to.
        chunk_s: seconds a chunk takes to be indexed, where that is known.
    """

    loaded: bool
    answering: bool
    indexing: bool
    amiss: tuple[str, ...] = ()
    chunk_s: float | None = None


class Workers(Protocol):
    """Those who have the model, in this process or on many machines. Safe for many concurrent calls."""

    @property
    def known(self) -> ModelFacts | None:
        """What was last heard of the model, without asking."""
        ...

    async def facts(self) -> ModelFacts:
        """Asks, if it is not known. Raises Overloaded while nobody has loaded it."""
        ...

    async def sample(self, recipe: Recipe, width: int, height: int) -> Sample:
        """A chunk of frames of so many pixels, prefilled and measured. Raises InvalidRecipe, Overloaded."""
        ...

    async def search(self, tenant: str, request: SearchRequest) -> Found:
        """See :meth:`~x2l_cluster.service.base.Service.search`. Raises UnknownVideo, ModelMismatch, Overloaded."""
        ...

    async def forget(self, tenant: str, video: str) -> None:
        """Lets go of what is kept hot of a video that is being deleted. Never raises: what stays is used by nobody."""
        ...

    async def pulse(self) -> Pulse:
        """How they are now. Never raises."""
        ...
