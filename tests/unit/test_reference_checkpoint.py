"""The bundled checkpoint: its files, its tokenizer, and a look at whether it reads."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from x2l_cluster import reference
from x2l_cluster.reference.data import PREFIX, SUFFIX, Codec
from x2l_cluster.reference.tokenizer import SPECIAL, build_tokenizer


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(reference.path())


def test_it_is_small_and_loads_through_transformers() -> None:
    weights = reference.path() / "model.safetensors"
    assert weights.stat().st_size <= 20_000_000
    model = AutoModelForImageTextToText.from_pretrained(reference.path())
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert sum(p.numel() for p in model.parameters()) <= 10_000_000
    with safe_open(weights, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
        assert not [name for name in file.keys() if name.startswith("aux")]  # noqa: SIM118


@pytest.mark.parametrize(
    "words",
    [
        "What code is shown with the red star?",
        "Grüße, 你好 🎉\t\n  ok ",
        "ÀÉ ñ ß 12³ ½",
        "<|im_start|>user\nhi<|im_end|>",
        " a  b",
    ],
)
def test_any_text_survives_the_tokenizer(words: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(reference.path())
    assert tokenizer.decode(tokenizer(words)["input_ids"]) == words


def test_digits_and_capitals_are_tokens_of_their_own(codec: Codec) -> None:
    pieces = [codec.raw.decode([t], skip_special_tokens=False) for t in codec.encode("<142.5 seconds>KXRT 42")]
    assert pieces == ["<", "1", "4", "2", ".", "5", " seconds", ">", "K", "X", "R", "T", " ", "4", "2"]
    assert [codec.encode(token) for token in SPECIAL] == [[i] for i in range(7)]


def test_the_bundled_tokenizer_is_what_the_code_builds() -> None:
    assert build_tokenizer().get_vocab() == AutoTokenizer.from_pretrained(reference.path()).get_vocab()


def test_the_chat_template_gives_the_trained_stream() -> None:
    tokenizer = AutoTokenizer.from_pretrained(reference.path())
    content = [{"type": "video"}, {"type": "text", "text": "Is a red star shown?"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert text == PREFIX + "<|video_pad|>" + "Is a red star shown?" + SUFFIX


def test_answers_end_the_generation() -> None:
    config = AutoConfig.from_pretrained(reference.path())
    tokenizer = AutoTokenizer.from_pretrained(reference.path())
    assert config.text_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert config.video_token_id == tokenizer.convert_tokens_to_ids("<|video_pad|>")
