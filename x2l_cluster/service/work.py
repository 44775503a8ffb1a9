"""What a job is to do, as plain data a queue can keep, and where its bytes may come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from x2l_cluster.errors import PathRefused
from x2l_cluster.service.requests import IndexRequest
from x2l_cluster.types import SourceRef


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexWork:
    """Index what exactly one of ``source``, ``path`` and ``url`` names, or append it to ``video``; if it ``replaces``
    other indexes, these go then.
    """

    source: SourceRef | None = None
    path: str | None = None
    url: str | None = None
    video: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    repair: bool = False
    replaces: bool = False
    append: bool = False

    @classmethod
    def of(cls, request: IndexRequest, roots: Sequence[Path]) -> Self:
        """Raises PathRefused."""
        return cls(
            source=request.source,
            path=None if request.path is None else str(allowed(request.path, roots)),
            url=request.url,
            video=request.video,
            recipe=dict(request.recipe),
            repair=request.repair,
            append=request.append,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        source = data["source"]
        return cls(**{**data, "source": SourceRef(**source) if source else None})


def allowed(path: str, roots: Sequence[Path]) -> Path:
    """The path, links resolved. Raises PathRefused when it is under none of the roots, whether it exists or not."""
    try:
        real = Path(path).expanduser().resolve()
        inside = any(real.is_relative_to(root.expanduser().resolve()) for root in roots)
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        raise PathRefused("the service does not read from that place; put the file under an allowed root, or upload it")
    return real
