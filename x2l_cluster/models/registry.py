"""From a name or a folder to a :class:`VideoLM`: one loader per family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash

from x2l_cluster.errors import ModelNotAvailable, UnsupportedModel
from x2l_cluster.models.base import VideoLM
from x2l_cluster.types import recipe_fields

BUNDLED = {"reference": Path(__file__).parents[1] / "reference" / "checkpoint"}
"""Names that mean a checkpoint shipped with the package."""


def _qwen3_vl(**arguments: Any) -> VideoLM:
    from x2l_cluster.models import qwen3_vl

    return qwen3_vl.load(**arguments)


FAMILIES: dict[str, Callable[..., VideoLM]] = {"qwen3_vl": _qwen3_vl}
"""``model_type`` of a checkpoint's configuration → its loader."""


def load_model(name: str, *, device: str | None = None, dtype: str | None = None) -> VideoLM:
    """Loads a model by bundled name, folder, or hub name (from the local cache, else from the hub).

    Args:
        device: default: a GPU if there is one.
        dtype: name of a torch dtype; default: bfloat16 on a GPU, float32 on a CPU.

    Raises ModelNotAvailable and UnsupportedModel.
    """
    path = find_checkpoint(name)
    config = _json(path / "config.json", name)
    family = config.get("model_type")
    loader = FAMILIES.get(str(family))
    if loader is None:
        raise UnsupportedModel(f"{name} is of type {family!r}; supported are {', '.join(sorted(FAMILIES))}")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    number = getattr(torch, dtype or ("bfloat16" if where.type == "cuda" else "float32"), None)
    if not isinstance(number, torch.dtype):
        raise ModelNotAvailable(f"{dtype!r} is not a torch dtype; use bfloat16, float16 or float32")
    extra = path / "x2l.json"
    preferred = recipe_fields(_json(extra, name).get("recipe", {})) if extra.exists() else {}
    return loader(path=path, device=where, dtype=number, weights=weights_digest(path), preferred=preferred)


def find_checkpoint(name: str) -> Path:
    """The folder of a checkpoint. Raises ModelNotAvailable with what is missing."""
    path = BUNDLED.get(name) or Path(name).expanduser()
    if name in BUNDLED or path.is_dir():
        if not (path / "config.json").exists():
            raise ModelNotAvailable(f"{path} holds no config.json; give the folder of a checkpoint")
        if not any(path.glob("*.safetensors")):
            todo = "install the package again" if name in BUNDLED else f"complete the download of {name}"
            raise ModelNotAvailable(f"{path} holds no weights (*.safetensors); {todo}")
        return path
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelNotAvailable(
            f"there is no folder {name}, and it is neither a bundled name ({', '.join(BUNDLED)}) nor owner/name"
        )
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelNotAvailable(
            f"{name} is not in the local hub cache and could not be downloaded ({type(error).__name__}); download it "
            "on a machine with a connection (`hf download`), or give the path of its folder"
        ) from error


def weights_digest(path: Path) -> str:
    """16 hex digits over what shapes KVs in a checkpoint folder: weights, configuration, tokenizer, chat template."""
    digest = xxhash.xxh3_64()
    shaping = ("config.json", "*.safetensors", "*token*.json", "vocab.json", "merges.txt", "chat_template*")
    for file in sorted({file for pattern in shaping for file in path.glob(pattern)}):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while piece := stream.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelNotAvailable(f"{path} of {name} cannot be read: {error}") from error
    return dict(value)
