"""Quantisation: the error bound, the extremes, and determinism."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.blocks import raw_block, same
from x2l_cluster.compress import compress, pool, quantise
from x2l_cluster.compress.quantise import quantise_tensor
from x2l_cluster.errors import NonFinite
from x2l_cluster.kv.block import Quantised
from x2l_cluster.types import Anchors, LevelSpec, Quant

SPECIAL = [float(np.float32(x)) for x in (0.0, -0.0, 1.0, 65504.0, 65505.0, -65504.0, 1e-7, 6e-8, 1e-45, 1000.3)]

arrays = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 9), st.sampled_from([2, 4, 6, 8])).flatmap(
    lambda shape: hnp.arrays(
        np.float32,
        shape,
        elements=st.one_of(
            st.floats(-10, 10, width=32),
            st.floats(-(2.0**100), 2.0**100, width=32),
            st.floats(-(2.0**-100), 2.0**-100, width=32, allow_subnormal=True),
            st.sampled_from(SPECIAL),
        ),
    )
)


def spread(x: torch.Tensor, q: Quantised) -> torch.Tensor:
    return x.float().repeat_interleave(q.group, dim=q.axis).narrow(q.axis, 0, q.shape[q.axis])


def assert_bounded(x: torch.Tensor, q: Quantised) -> None:
    scale, low = spread(q.scale, q).double(), spread(q.low, q).double()
    back = q.dequantise(torch.float32).double()
    assert torch.isfinite(back).all()
    eps = 2.0**-22
    tiny = 255 * 2.0**-150 + 1e-44  # a scale that small is rounded to a multiple of 2^-149, and 255 steps add up
    bound = scale / 2 + eps * (low.abs() + 255 * scale) + tiny
    assert ((x.double() - back).abs() <= bound).all(), ((x.double() - back).abs() - bound).max()


@settings(max_examples=150, deadline=None)
@given(x=arrays, bits=st.sampled_from([4, 8]), axis=st.sampled_from([-1, -2]), group=st.sampled_from([2, 3, 4, 64]))
def test_error_is_at_most_half_a_step(x: np.ndarray, bits: int, axis: int, group: int) -> None:
    tensor = torch.from_numpy(x)
    q = quantise_tensor(tensor, bits=bits, axis=axis, group=group)
    assert q.shape == tuple(tensor.shape)
    expected = list(tensor.shape)
    expected[axis] = -(-expected[axis] // group)
    assert list(q.scale.shape) == list(q.low.shape) == expected
    assert_bounded(tensor, q)


@settings(max_examples=60, deadline=None)
@given(value=st.floats(-60000, 60000, width=32), bits=st.sampled_from([4, 8]))
def test_constants_survive(value: float, bits: int) -> None:
    x = torch.full((1, 1, 5, 4), value)
    q = quantise_tensor(x, bits=bits, axis=-2, group=64)
    back = q.dequantise()
    assert ((back - x).abs() <= abs(value) * 2.0**-10 / (2**bits - 1) + 2.0**-24).all()


def test_the_step_is_close_to_the_smallest_possible() -> None:
    x = torch.randn(2, 2, 128, 32, generator=torch.Generator().manual_seed(0))
    for bits, axis, group in ((8, -2, 64), (4, -2, 32), (8, -1, 32), (4, -1, 32)):
        q = quantise_tensor(x, bits=bits, axis=axis, group=group)
        assert q.scale.dtype is torch.float16
        parts = x.unflatten(axis, (-1, group))
        ideal = (parts.amax(axis) - parts.amin(axis)) / (2**bits - 1)
        assert (q.scale.float() <= ideal * 1.01 + 1e-4).all()


@pytest.mark.parametrize("peak", [1e5, 1e30, 1e-6, 1e-20])
def test_ranges_beyond_float16_get_wide_parameters(peak: float) -> None:
    x = torch.randn(1, 1, 70, 8, generator=torch.Generator().manual_seed(1)) * peak
    q = quantise_tensor(x, bits=8, axis=-2, group=64)
    assert q.scale.dtype is torch.float32
    assert_bounded(x, q)
    assert (q.dequantise() - x).abs().max() < 0.02 * x.abs().max()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("part", ["keys", "values"])
@pytest.mark.parametrize("quant", [Quant.INT8, Quant.INT4, Quant.NONE])
def test_what_cannot_be_stored_is_refused(bad: float, part: str, quant: Quant) -> None:
    block = raw_block()
    tensor = getattr(block, part).clone()
    tensor[0, 1, 2, 3] = bad
    with pytest.raises(NonFinite, match=part):
        quantise(replace(block, **{part: tensor}), quant, torch.float16)


@pytest.mark.parametrize("quant", list(Quant))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_input_type_comes_back_close(quant: Quant, dtype: torch.dtype) -> None:
    block = raw_block(dim=64, rows=7, cols=9, dtype=dtype)
    stored = quantise(block, quant, "float16")
    assert stored.is_quantised is (quant is not Quant.NONE)
    assert stored.runs == block.runs
    assert stored.counts is block.counts
    for before, after in zip(block.dense(), stored.dense(), strict=True):
        limit = {Quant.NONE: 0.01, Quant.INT8: 0.03, Quant.INT4: 0.4}[quant]
        assert (before - after).abs().max() < limit
    if quant is not Quant.NONE:
        assert_bounded(block.keys, stored.keys)
        assert_bounded(block.values, stored.values)
        size = stored.keys.nbytes + stored.values.nbytes
        plain = 2 * block.keys.numel() * 2
        assert size < plain * {Quant.INT8: 0.56, Quant.INT4: 0.33}[quant]


def test_unquantised_is_a_cast_to_the_recipes_dtype() -> None:
    block = raw_block()
    stored = quantise(block, Quant.NONE, "bfloat16")
    assert torch.equal(stored.keys, block.keys.to(torch.bfloat16))


@pytest.mark.parametrize("quant", [Quant.INT8, Quant.INT4])
def test_equal_input_gives_equal_bytes(quant: Quant) -> None:
    a, b = (quantise(raw_block(seed=3), quant, "float16") for _ in range(2))
    assert torch.equal(a.keys.codes, b.keys.codes)
    assert torch.equal(a.values.scale, b.values.scale)
    assert same(a.dequantised(), b.dequantised())


def test_compress_is_pool_then_quantise() -> None:
    block = raw_block(rows=5, cols=6)
    spec = LevelSpec(pool="2x2", anchors=Anchors.FIRST_TIME, quant=Quant.INT4)
    assert same(
        compress(block, spec, "float16").dequantised(),
        quantise(pool(block, spec), Quant.INT4, "float16").dequantised(),
    )
