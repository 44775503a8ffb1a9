"""The reference model's small tokenizer and chat template.

Byte-level BPE, so any text round-trips; every digit and every capital is a token of its own, so that times and
codes are spelt out and no question teaches a number that another cannot use.
"""

from __future__ import annotations

import itertools
from typing import Any

from x2l_cluster.needles.questions import COUNT, EXISTENCE, ORDER, RETRIEVAL, TIME_AT, TIME_WHEN
from x2l_cluster.needles.script import ALL_MARKERS

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
PATTERN = r" ?\p{Ll}+|\p{Lu}|\p{N}|\s|[^\s\p{L}\p{N}]|\p{L}"

# A video is one <|video_pad|>; the processor puts timestamps and vision markers around its groups.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- else -%}{%- for item in message.content -%}"
    "{%- if item.type == 'video' or 'video' in item -%}{{- '<|video_pad|>' -}}"
    "{%- elif item.type == 'image' or 'image' in item -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in item -%}{{- item.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

# Common words, so that a question in a user's own words is not spelt letter by letter.
WORDS = """user assistant system seconds second minutes minute hours hour frame video clip scene scenes marker sign
what which when where how who why many much often long first last before after earlier later then next between during
at in on of to from with without and or not is are was were be do does did can could see seen show shows shown appear
appears appeared visible the this that there it its a an code codes letters four text read tell me name list describe
count time times start starts end ends begin yes no none color colour shape left right top bottom middle background
moving white black red green blue yellow pink cyan orange purple star ring cross square triangle heart moon circle
please give find look exactly only also any some all every each other same different more less than too very""".split()


def corpus() -> list[str]:
    """Text the merges are learnt from: every phrasing with every marker, and common words."""
    lines = [f" {w}" for w in WORDS] * 40 + WORDS * 20
    for a, b in itertools.product(ALL_MARKERS, ALL_MARKERS[:8]):
        names = {"m": a.name, "a": a.name, "b": b.name, "am": f"a {a.name}", "t": "42 min 10 s"}
        lines += [t.format(**names) for t in (*RETRIEVAL, *TIME_AT, *TIME_WHEN, *ORDER, *EXISTENCE, *COUNT)]
        lines += [
            f"a {a.name}",
            f"the {a.name}",
            "yes",
            "no",
            "<42.5 seconds>",
            "42.5 seconds",
            "42 seconds (42.0 seconds)",
        ]
    return lines


def build_tokenizer(vocab_size: int = 768) -> Any:
    """A ``PreTrainedTokenizerFast``; deterministic."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, min_frequency=1,
    )  # fmt: skip
    raw.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]), model_max_length=16384, clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
