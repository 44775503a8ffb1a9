"""The training loop: it runs, stops, resumes where it was, and exports what transformers loads."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from x2l_cluster import reference
from x2l_cluster.reference import train
from x2l_cluster.reference.train import learning_rate, main


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller model over plain backgrounds: the loop is what is tested."""
    config = AutoConfig.from_pretrained(reference.path())
    text, vision = config.text_config, config.vision_config
    text.hidden_size = vision.out_hidden_size = 32
    text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads, text.intermediate_size = 3, 2, 1, 32
    vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size = 2, 32, 1, 32
    vision.deepstack_visual_indexes = [0]
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_args, **_options: config)
    bank = torch.randint(0, 255, (1024, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    monkeypatch.setattr(train, "backgrounds", lambda *_args, **_options: bank)


def _arguments(out: Path) -> list[str]:
    return [
        *("--out", str(out), "--steps", "2", "--groups-per-step", "8", "--workers", "0", "--device", "cpu"),
        *("--log-every", "1", "--save-s", "-1", "--eval-videos", "0", "--warmup", "2"),
    ]


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    try:
        main(_arguments(tmp_path / "straight"))
        said: list[str] = []

        def stop_in_step_two(line: str) -> None:
            said.append(line)
            if len(said) == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(train, "say", stop_in_step_two)
            with pytest.raises(KeyboardInterrupt):
                main(_arguments(tmp_path / "stopped"))
        assert torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)["step"] == 1
        main(_arguments(tmp_path / "stopped"))
    finally:
        torch.set_num_threads(threads)
    straight, resumed = (load_file(tmp_path / run / "model.safetensors") for run in ("straight", "stopped"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    steps = [json.loads(line)["step"] for line in (tmp_path / "straight" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2]


def test_the_learning_rate_warms_up_and_anneals() -> None:
    rates = [learning_rate(step, 1000, 1e-3, 100) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) in {99, 100}
    assert rates[-1] < 4e-5
    assert all(a >= b for a, b in itertools.pairwise(rates[100:]))
