"""The benchmark of copies to a GPU, as far as it can be seen without one."""

from __future__ import annotations

import pytest
import torch

from x2l_cluster.bench.device import _from_arena, run_device
from x2l_cluster.errors import InvalidInput
from x2l_cluster.kv.host import HostKV
from x2l_cluster.types import BlockKey


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(InvalidInput, match="torch sees none here: run it on a machine with one"):
        run_device()


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_the_arena_path_moves_every_stripe_and_keeps_no_lease(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", type("Stream", (), {"synchronize": lambda self: None}))
    keys = [BlockKey(tenant="b", video="v", recipe="r", epoch=1, kind="l", chunk=n) for n in range(3)]
    with HostKV(tmp_path_factory.mktemp("arena") / "arena", budget_bytes=1 << 20) as store:
        for n, key in enumerate(keys):
            store.put(key, bytes([n + 1]) * 1000)
        target = torch.zeros(3, 1000, dtype=torch.uint8)
        _from_arena(target, store, keys)
        assert [row.unique().tolist() for row in target] == [[1], [2], [3]]
        assert store.stats().leases == 0
