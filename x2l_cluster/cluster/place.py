"""Where a worker finds its model and its stores: a plain value, so that it travels to any node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from x2l_cluster.engine import Stores, VideoEngine, find_calibration
from x2l_cluster.models import load_model
from x2l_cluster.service.addresses import Gate
from x2l_cluster.service.fetch import Fetcher
from x2l_cluster.settings import Settings
from x2l_cluster.state.open import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What every worker of one service has in common; fields as in :class:`~x2l_cluster.settings.Settings`.

    ``store`` and ``state`` must be reachable from every node, be it in ways of its own (as another user, through an
    arena of the node): then each worker is told by its own environment.
    """

    model: str = "reference"
    store: str = "disk:~/.x2l"
    fine_store: str | None = None
    state: str | None = None
    sources: str | None = None
    device: str | None = None
    dtype: str | None = None
    cache_bytes: int = 2 << 30
    decode_deadline_s: float = 30.0
    api_keys: Literal["open", "required"] = "open"
    roots: tuple[Path, ...] = ()
    max_source_bytes: int = 16 << 30
    fetch_within_s: float = 3600.0
    fetch_allow: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(**{name: getattr(settings, name) for name in cls.__dataclass_fields__})

    def stores(self) -> Stores:
        """Raises InvalidInput, StoreUnavailable."""
        return Stores.open(self.store, fine=self.fine_store, state=self.state, sources=self.sources)

    def engine(self) -> VideoEngine:
        """Loads the model and opens the stores.

        Raises ModelNotAvailable, UnsupportedModel, InvalidInput, StoreUnavailable.
        """
        lm = load_model(self.model, device=self.device, dtype=self.dtype)
        return VideoEngine(
            lm,
            self.stores(),
            calibration=find_calibration(self.model, lm),
            cache_bytes=self.cache_bytes,
            decode_deadline_s=self.decode_deadline_s,
        )

    def opened_state(self, stores: Stores) -> State:
        """Jobs, tenants and sessions beside the manifests of these stores of this place."""
        return State.open(self.state or self.store, manifests=stores.state)

    def fetcher(self) -> Fetcher:
        """Of videos that are named by URL."""
        return Fetcher(Gate(self.fetch_allow), max_bytes=self.max_source_bytes, within_s=self.fetch_within_s)
