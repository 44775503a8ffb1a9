"""Makes the driver know a mapped arena, so that a copy from it to a device is one asynchronous transfer.

Every process registers its own mapping: page tables are per process, and so is what the driver knows.
"""

from __future__ import annotations

from typing import Any, Final

from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.host.arena import Arena

_PORTABLE: Final = 1
"""cudaHostRegisterPortable: for every context of the process."""


def register(arena: Arena) -> bool:
    """False without a GPU. Raises StoreFull if not all pages can be had, StoreUnavailable if the driver refuses."""
    cudart = _cudart()
    if cudart is None:
        return False
    arena.prefault()
    code = int(cudart.cudaHostRegister(arena.pages.ctypes.data, arena.pages.nbytes, _PORTABLE))
    if code:
        raise StoreUnavailable(
            f"CUDA cannot register the arena {arena.path} ({arena.pages.nbytes} bytes, error {code}): lower the budget"
        )
    return True


def unregister(arena: Arena) -> None:
    cudart = _cudart()
    if cudart is not None:
        cudart.cudaHostUnregister(arena.pages.ctypes.data)


def _cudart() -> Any:
    import torch  # heavy, and needed by nobody who stores bytes

    return torch.cuda.cudart() if torch.cuda.is_available() else None
