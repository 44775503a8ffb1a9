"""What calibration found out about a model: which heads retrieve, how to use them, and how sure they are.

Found once per model on synthetic probes (``calibrate/``) and shipped with it, as a small JSON file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import xxhash

from x2l_cluster.errors import CalibrationMissing, InvalidInput
from x2l_cluster.select.question import Aggregation, Encoding, TokenSet
from x2l_cluster.select.scoring import Way
from x2l_cluster.types import Quant

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Heads, how to use them, and the ``auto`` margin.

    Attributes:
        weights: digest of the model's weights (``ModelSpec.weights``); it fits no other model.
        conditions: what of the recipe it was found under, name → value (level pooling, positions …); informative.
        heads: (layer, query head) of each calibrated head, best first.
        rotation, tokens, aggregation, encoding: how they are used.
        storage: how the score index keeps their keys.
        margins: (number of chunks, margin) points, by rising number: ``auto`` takes all chunks that score within the
            margin of the best.
        cap: ``auto`` takes at most this share of the chunks.
        recall: figures on held-out probes, name → value (``"1"``: needed chunks among the best one, …).
        probes: how many probe videos it stems from.
        created_with: version and settings of the search.
    """

    weights: str
    heads: tuple[tuple[int, int], ...]
    rotation: bool
    tokens: TokenSet
    aggregation: Aggregation
    encoding: Encoding
    margins: tuple[tuple[int, float], ...]
    cap: float = 0.25
    storage: Quant = Quant.INT8
    conditions: tuple[tuple[str, str], ...] = ()
    recall: tuple[tuple[str, float], ...] = ()
    probes: int = 0
    created_with: str = ""

    def __post_init__(self) -> None:
        for name in ("conditions", "recall"):  # one order, so that equal calibrations are equal values
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
        if not self.heads or len(set(self.heads)) != len(self.heads) or min(min(h) for h in self.heads) < 0:
            raise InvalidInput(f"a calibration names at least one (layer, head), each once; got {self.heads}")
        if self.encoding is Encoding.NONE:
            raise InvalidInput("calibrated heads need the question's queries: encoding is over_coarse or alone")
        if not 0 < self.cap <= 1:
            raise InvalidInput(f"cap is a share of the chunks, above 0 and at most 1; got {self.cap}")
        rising = all(a < b for (a, _), (b, _) in pairwise(self.margins))
        fine = all(n >= 1 and math.isfinite(margin) and margin >= 0 for n, margin in self.margins)
        if not self.margins or not rising or not fine:
            raise InvalidInput(f"margins are (chunks, margin from 0) points by rising chunks; got {self.margins}")

    @property
    def way(self) -> Way:
        return Way(self.rotation, self.tokens, self.aggregation)

    @property
    def layers(self) -> frozenset[int]:
        return frozenset(layer for layer, _ in self.heads)

    def margin(self, chunks: int) -> float:
        """The ``auto`` margin for so many chunks: linear in log(chunks) between the points, level beyond them."""
        if chunks <= self.margins[0][0]:
            return self.margins[0][1]
        for (a, low), (b, high) in pairwise(self.margins):
            if chunks <= b:
                share = (math.log(chunks) - math.log(a)) / (math.log(b) - math.log(a))
                return low + share * (high - low)
        return self.margins[-1][1]

    def most(self, chunks: int) -> int:
        """How many chunks ``auto`` takes at most: the cap, rounded up, and never none."""
        return max(1, math.ceil(self.cap * chunks - 1e-9))

    @cached_property
    def digest(self) -> str:
        """16 hex digits over everything that changes stored features, scores or plans."""
        told = {k: v for k, v in self.to_dict().items() if k not in ("conditions", "recall", "probes", "created_with")}
        return xxhash.xxh3_64_hexdigest(json.dumps(told, sort_keys=True).encode())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"format": FORMAT, **plain, "conditions": dict(self.conditions), "recall": dict(self.recall)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save(self, path: Path | str) -> None:
        """Writes the file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(self.to_json(), encoding="utf-8")
        fresh.replace(path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Raises CalibrationMissing where there is no such file, InvalidInput where it is no calibration."""
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise CalibrationMissing(f"no calibration can be read at {path} ({error}): run `x2l calibrate`") from error
        return cls.from_json(text)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises InvalidInput for what is no calibration of this format."""
        try:
            plain = dict(data)
            if plain.pop("format") != FORMAT:
                raise ValueError(f"format {data['format']}, this version reads {FORMAT}")
            return cls(
                **plain
                | {
                    "heads": tuple((int(layer), int(head)) for layer, head in plain["heads"]),
                    "margins": tuple((int(n), float(margin)) for n, margin in plain["margins"]),
                    "rotation": bool(plain["rotation"]),
                    "tokens": TokenSet(plain["tokens"]),
                    "aggregation": Aggregation(plain["aggregation"]),
                    "encoding": Encoding(plain["encoding"]),
                    "storage": Quant(plain["storage"]),
                    "cap": float(plain["cap"]),
                    "conditions": tuple((str(k), str(v)) for k, v in plain["conditions"].items()),
                    "recall": tuple((str(k), float(v)) for k, v in plain["recall"].items()),
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(f"this is no calibration ({error!r}); make one with `x2l calibrate MODEL`") from error

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises InvalidInput."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InvalidInput(f"a calibration is a JSON object, this is none: {error}") from error
        if not isinstance(data, dict):
            raise InvalidInput("a calibration is a JSON object, this is none")
        return cls.from_dict(data)
