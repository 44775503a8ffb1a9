"""Everything that is trained: the Qwen3-VL weights by name and a few auxiliary heads that are thrown away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from x2l_cluster.needles.atlas import load_atlas
from x2l_cluster.needles.backgrounds import TRAIN_TEXTURES, texture
from x2l_cluster.needles.drawing import draw
from x2l_cluster.needles.script import COLORS, LETTERS, SHAPES
from x2l_cluster.reference.augment import augment
from x2l_cluster.reference.data import Batch
from x2l_cluster.reference.forward import TEXT, Shape, _mlp, _qkv, patchify, text, vision

TAP = 2  # the text layer whose visual tokens the second set of auxiliary heads reads
LETTER_CLASSES, COLOR_CLASSES, SHAPE_CLASSES = len(LETTERS) + 1, len(COLORS) + 1, len(SHAPES) + 1
AUX_SIZES = {
    "aux.letters": 4 * LETTER_CLASSES, "aux.marker": COLOR_CLASSES + SHAPE_CLASSES,
    "aux.tap": COLOR_CLASSES + SHAPE_CLASSES + 2 + 30, "aux.tap_letters": 4 * LETTER_CLASSES,
}  # fmt: skip
KIND_WEIGHT = (1.0, 1.0, 2.0, 2.5, 3.5)  # answers differ in length, and order learns last


def initial_weights(config: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of a fresh model in float32, plus the auxiliary heads; the tied output head is left out."""
    from transformers import Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config).float()
    weights = {name: value.detach().clone() for name, value in model.named_parameters() if name != "lm_head.weight"}
    width = config.text_config.hidden_size
    weights |= {name: torch.randn(size, width) * 0.02 for name, size in AUX_SIZES.items()}
    return weights


def is_aux(name: str) -> bool:
    return name.startswith("aux.")


def backgrounds(device: torch.device, footage: torch.Tensor, *, first: int = 0) -> torch.Tensor:
    """The bank of backgrounds: ``TRAIN_TEXTURES`` textures from number ``first`` on, then the footage's frames."""
    return torch.cat([torch.stack([texture(first + i) for i in range(TRAIN_TEXTURES)]), footage]).to(device)


def pixels(batch: Batch, bank: torch.Tensor, device: torch.device, *, augmented: bool, step: int = 0) -> torch.Tensor:
    """Draw a batch's frames: ``(B, G, 2, 3, 128, 128)`` normalised to -1..1."""
    plan = batch.plan
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    rows, since, where = (t.to(device, non_blocking=True) for t in (batch.rows, batch.since, batch.where))
    atlas = load_atlas(str(device))
    parts = []
    for i in range(0, len(rows), 2048):
        one = slice(i, i + 2048)
        part = draw(rows[one], since[one], bank, where[one], atlas, plan.draw_size, dtype).clamp(0, 1)
        if plan.draw_size != 128:
            part = F.interpolate(part.float(), size=(128, 128), mode="bicubic", antialias=True).clamp(0, 1).to(dtype)
        parts.append(part)
    frames = torch.cat(parts)
    if augmented:
        frames = augment(frames, plan.videos, seed=step)
    frames = frames.mul_(255).round_().mul_(2 / 255).sub_(1)
    return frames.view(plan.videos, plan.groups, 2, 3, 128, 128)


def see(
    w: dict[str, torch.Tensor], shape: Shape, frames: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The vision tower over ``frames (B, G, 2, 3, H, W)``; tokens and features with their batch and group back."""
    b, g = frames.shape[:2]
    side = frames.shape[-1] // shape.patch
    tokens, deep = vision(w, shape, patchify(frames.flatten(0, 1).to(dtype), shape.patch, shape.merge), side)
    return tokens.view(b, g, *tokens.shape[1:]), [d.view(b, g, *d.shape[1:]) for d in deep]


class Losses:
    """The training loss of a batch, with the counters that a log line needs."""

    def __init__(self, shape: Shape, *, compiled: bool = False) -> None:
        self.shape = shape
        self.qkv: Any = torch.compile(_qkv, dynamic=True) if compiled else _qkv
        self.mlp: Any = torch.compile(_mlp, dynamic=True) if compiled else _mlp

    def answers(
        self, w: dict[str, torch.Tensor], batch: Batch, tokens: torch.Tensor, deep: list[torch.Tensor],
        *, states: torch.Tensor | None = None, causal: bool | None = None, tap: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """Logits of every answer token ``(targets, vocabulary)``, and the tapped states."""
        device = tokens.device
        hidden, tapped = text(
            w, self.shape, batch.layout.to(device), tokens, deep, batch.question_ids.to(device),
            (batch.states if states is None else states).to(device),
            causal=batch.plan.causal if causal is None else causal, tap=tap, qkv=self.qkv, mlp=self.mlp,
        )  # fmt: skip
        chosen = hidden.flatten(0, 2).index_select(0, batch.target_at.to(device))
        return F.linear(chosen, w[TEXT + "embed_tokens.weight"]).float(), tapped

    def __call__(
        self, w: dict[str, torch.Tensor], batch: Batch, frames: torch.Tensor, aux_weight: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        device = frames.device
        tokens, deep = see(w, self.shape, frames, dtype)
        logits, tapped = self.answers(w, batch, tokens, deep, tap=TAP)
        target, owner = batch.target.to(device), batch.target_question.to(device)
        kinds = batch.kinds.flatten().to(device)
        weight = torch.tensor(KIND_WEIGHT, device=device)[kinds[owner]]
        each = F.cross_entropy(logits, target, reduction="none")
        answer = (each * weight).sum() / weight.sum()
        assert tapped is not None
        letters, marker, begins = (t.to(device) for t in (batch.letters, batch.marker, batch.begins))
        everywhere = marker[:, :, None].expand(-1, -1, 16, -1)
        first = F.linear(tokens, w["aux.marker"])
        second = F.linear(tapped, w["aux.tap"])
        c, s = COLOR_CLASSES, SHAPE_CLASSES
        digits = batch.digits.to(device)[None, :, None].expand(len(tokens), -1, 16, -1)
        parts = {
            "letters": _letters(F.linear(tokens, w["aux.letters"]), letters),
            "tap_letters": _letters(F.linear(tapped, w["aux.tap_letters"]), letters),
            "marker": _pick(first[..., :c], everywhere[..., 0]) + _pick(first[..., c : c + s], everywhere[..., 1]),
            "tap_marker": _pick(second[..., :c], everywhere[..., 0])
            + _pick(second[..., c : c + s], everywhere[..., 1]),
            "begins": _pick(second[..., c + s : c + s + 2], begins[:, :, None].expand(-1, -1, 16)),
            "digits": _pick(second[..., c + s + 2 :].unflatten(-1, (3, 10)), digits),
        }  # fmt: skip
        loss = answer + aux_weight * sum(parts.values(), torch.zeros((), device=device))
        with torch.no_grad():
            wrong = torch.zeros(len(kinds), device=device).index_add_(0, owner, (logits.argmax(-1) != target).float())
            asked = kinds >= 0
            right = torch.stack([((wrong == 0) & (kinds == k)).sum() for k in range(5)])
            total = torch.stack([(asked & (kinds == k)).sum() for k in range(5)])
        report = {"answer": answer.detach(), "right": right, "total": total}
        return loss, report | {f"aux_{k}": v.detach() for k, v in parts.items()}


def _pick(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, -2).float(), target.flatten(), ignore_index=-100)


def _letters(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Most cells hold no letter: they count little."""
    weight = torch.full((LETTER_CLASSES,), 1.0, device=logits.device)
    weight[0] = 0.03
    return F.cross_entropy(
        logits.unflatten(-1, (4, LETTER_CLASSES)).flatten(0, -2).float(), target.flatten(), weight=weight
    )


def save_weights(weights: dict[str, torch.Tensor], file: Path) -> None:
    """The model's weights in bf16, under the names that transformers expects."""
    from safetensors.torch import save_file

    kept = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in weights.items()
        if not is_aux(name)
    }
    save_file(kept, str(file), metadata={"format": "pt"})
