"""Finding a checkpoint: what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import byte_tokenizer, qwen3_vl_model
from x2l_cluster.errors import InvalidRecipe, ModelNotAvailable, UnsupportedModel
from x2l_cluster.models import load_model
from x2l_cluster.models.registry import find_checkpoint, weights_digest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    qwen3_vl_model(0).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "x2l.json").write_text(json.dumps({"recipe": {"height": 32, "width": 32, "coarse": {"pool": "group"}}}))
    return folder


def test_a_folder_loads_with_the_recipe_it_prefers(checkpoint):
    lm = load_model(str(checkpoint), device="cpu")
    recipe = lm.recipe()
    assert (recipe.height, recipe.coarse.pool, recipe.family) == (32, "group", "qwen3_vl")
    assert recipe.weights == lm.spec.weights == weights_digest(checkpoint)
    assert lm.recipe(height=64, width=64).height == 64


def test_other_weights_are_another_digest(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert weights_digest(tmp_path) == weights_digest(checkpoint)
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert weights_digest(tmp_path) != weights_digest(checkpoint)


def test_a_preferred_recipe_that_is_none_is_an_error(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "x2l.json").write_text('{"recipe": {"coarse": {"quant": "int3"}}}')
    with pytest.raises(InvalidRecipe):
        load_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("name", "says"),
    [("./nowhere", "no folder"), ("/nowhere/at/all", "no folder"), ("justaword", "no folder")],
)
def test_a_name_that_is_nothing_says_so(name, says):
    with pytest.raises(ModelNotAvailable, match=says):
        find_checkpoint(name)


def test_a_folder_without_weights_says_what_is_missing(checkpoint, tmp_path):
    with pytest.raises(ModelNotAvailable, match=r"config\.json"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    with pytest.raises(ModelNotAvailable, match="safetensors"):
        find_checkpoint(str(tmp_path))


def test_a_hub_name_offline_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotAvailable, match="hf download"):
        find_checkpoint("somebody/qwen3-vl-that-is-not-here")


def test_another_architecture_is_refused_by_name(checkpoint, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModel, match="mamba"):
        load_model(str(tmp_path))
