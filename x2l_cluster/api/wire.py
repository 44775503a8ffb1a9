"""Values as JSON: what ``messages.py`` and ``types`` define is the wire format."""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter

_ADAPTERS: Final[dict[type, TypeAdapter[Any]]] = {}


def dump(value: Any) -> bytes:
    """A message as JSON; a :class:`pydantic.TypeAdapter` of its class makes it equal again."""
    kind = type(value)
    adapter = _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))
    return adapter.dump_json(value)
