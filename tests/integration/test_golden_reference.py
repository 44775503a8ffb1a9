"""The bundled checkpoint on a real mp4: our path at ratio 1 against the stock processor and the stock model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from x2l_cluster.engine import Assembler, Decoder, Generation, Prefiller, Prefix
from x2l_cluster.models import Step, View, load_model
from x2l_cluster.models.registry import BUNDLED
from x2l_cluster.needles import make_questions, make_script
from x2l_cluster.needles.files import write_mp4
from x2l_cluster.types import Level, LevelSpec, Positions, Quant
from x2l_cluster.video import chunked, open_video

IDENTITY = LevelSpec(pool="1x1", quant=Quant.NONE)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """48 frames, one a second, larger than the model's frames."""
    path = tmp_path_factory.mktemp("golden") / "needles.mp4"
    write_mp4(make_script(3, duration_s=48.0, split="eval"), path, size=256, fps=1)
    return path


def test_ratio_1_on_a_decoded_mp4_is_the_stock_processor_and_model(film, tmp_path):
    lm = load_model("reference", device="cpu", dtype="float32")
    question = next(
        q.text for q in make_questions(make_script(3, duration_s=48.0, split="eval")) if q.kind == "retrieval"
    )
    recipe = lm.recipe(
        fine=IDENTITY, coarse=IDENTITY, memory_entries=None, kv_dtype="float32", positions=Positions.ORIGINAL
    )
    prompt = lm.prompt(question)
    prefix = Prefix.of(lm, prompt.prefix)
    with open_video(film, recipe.sampling) as stream:
        done = list(Prefiller(lm, recipe, prefix).run(chunked(stream, chunk_frames=recipe.chunk_frames)))
    pages, end = Assembler(lm).pages(
        [item.blocks[Level.L] for item in done], recipe.positions, anchor=prefix.end, end=done[-1].position_end
    )
    tokens = lm.embed_text(prompt.suffix, end)
    ours = lm.logits(lm.forward([Step(tokens=tokens, view=View([prefix.page, *pages]))]).hidden[0][-1:])[0]
    decoder = Decoder(lm)
    written = decoder.join(View([prefix.page, *pages]), tokens, Generation(max_tokens=12))
    list(decoder.run())

    output = tmp_path / "stock.pt"
    program = Path(__file__).with_name("stock_forward.py")
    command = [
        sys.executable,
        str(program),
        str(BUNDLED["reference"]),
        str(film),
        question,
        str(output),
    ]
    done_stock = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done_stock.returncode == 0, done_stock.stderr
    stock = torch.load(output)
    assert stock["grid"].tolist() == [[24, recipe.height // 16, recipe.width // 16]]
    torch.testing.assert_close(ours, stock["logits"].float(), atol=2e-3, rtol=1e-3)
    stock_ids = [int(i) for i in stock["ids"]]
    assert [i for i in stock_ids if i not in lm.stop_ids] == written.ids
