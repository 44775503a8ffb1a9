"""The bundled checkpoint: how it is trained, its card, its weights."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The folder of the bundled checkpoint, loadable by plain ``transformers``."""
    return Path(__file__).with_name("checkpoint")
