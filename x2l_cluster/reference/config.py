"""The shape of the reference model (about 9.3 M parameters) and the files that make it loadable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from x2l_cluster.reference.tokenizer import build_tokenizer

FRAME = 128
ROPE_THETA = 10_000.0


def build_config(tokenizer: Any) -> Any:
    """A ``Qwen3VLConfig`` for the reference model; token ids are the tokenizer's."""
    from transformers import Qwen3VLConfig

    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in (
        "image_pad", "video_pad", "vision_start", "vision_end")}  # fmt: skip
    vocab = -(-len(tokenizer) // 64) * 64
    return Qwen3VLConfig(
        text_config={
            "vocab_size": vocab, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 16384,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [6, 5, 5],
                                "mrope_interleaved": True},
            "tie_word_embeddings": True,
            "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 4, "hidden_size": 192, "intermediate_size": 768, "num_heads": 6, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 256,
            "num_position_embeddings": (FRAME // 16) ** 2, "deepstack_visual_indexes": [1, 2],
        },
        image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip


def write_processor(folder: Path, tokenizer: Any) -> None:
    """Tokenizer, chat template, processor and generation settings; the weights come from elsewhere."""
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    common = {
        "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    frame = FRAME * FRAME
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor",
             "size": {"shortest_edge": frame, "longest_edge": frame}, **common}  # fmt: skip
    # 16 tokens a frame, whatever the length: square videos become 128 x 128, the only size that was trained.
    video = {"video_processor_type": "Qwen3VLVideoProcessor", "processor_class": "Qwen3VLProcessor",
             "size": {"shortest_edge": 64 * 64, "longest_edge": frame * 768}, "fps": 1.0, "min_frames": 2,
             "max_frames": 768, "cap_pixels_per_frame": True, "max_video_tokens": 16, **common}  # fmt: skip
    stop = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    generation = {"do_sample": False, "eos_token_id": stop, "pad_token_id": tokenizer.pad_token_id}
    files = {"preprocessor_config.json": image, "video_preprocessor_config.json": video,
             "generation_config.json": generation}  # fmt: skip
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write everything but the weights into the bundled folder."""
    from x2l_cluster.reference import path

    path().mkdir(exist_ok=True)
    tokenizer = build_tokenizer()
    write_processor(path(), tokenizer)
    build_config(tokenizer).save_pretrained(path())


if __name__ == "__main__":
    main()
