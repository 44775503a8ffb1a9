"""Configuration from the environment (prefix ``X2L_``); every value has a default that works on a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from x2l_cluster.errors import InvalidInput


class Settings(BaseSettings):
    """What the command line and the services start from. Flags win over the environment."""

    model_config = SettingsConfigDict(env_prefix="X2L_", frozen=True, extra="ignore")

    model: str = Field("reference", description="bundled name, folder, or owner/name of a checkpoint")
    store: str = Field(
        "disk:~/.x2l", description="where indexes are kept: disk:PATH, memory:, or tiers:URL|URL|disk:PATH"
    )
    fine_store: str | None = Field(
        None, description="where fine blocks are kept instead: redis://…, valkey://…, unix://…"
    )
    state: str | None = Field(
        None, description="where manifests and jobs are kept instead: disk:PATH, redis://…, valkey://…, unix://…"
    )
    sources: str | None = Field(
        None, description="where originals are kept instead: a folder or an fsspec URL (s3://…)"
    )
    roots: tuple[Path, ...] = Field((), description="folders that jobs may read files from, the same on every node")
    max_source_bytes: int = Field(16 << 30, gt=0, description="of one upload or fetched video")
    fetch_within_s: float = Field(3600.0, gt=0, description="what fetching one video may take")
    fetch_allow: tuple[str, ...] = Field(
        (), description="hosts and networks that videos are fetched from though they are not public"
    )
    lease_s: float = Field(30.0, gt=0, description="a job whose worker is silent for so long is given to another")
    keep_s: float | None = Field(
        None, ge=1, description="seconds after it was indexed a video is deleted by the janitor; by default never"
    )
    fine_s: float | None = Field(
        None, ge=1, description="seconds after it was indexed a video's fine detail is let go of; by default never"
    )
    sweep_every_s: float = Field(
        3600.0, ge=0, description="seconds between two looks of the janitor for blobs that nothing names"
    )
    tidy_every_s: float = Field(60.0, gt=0, description="seconds between two passes of the janitor within `x2l up`")
    push_url: str | None = Field(
        None, description="a Prometheus Pushgateway that the janitor tells its metrics; by default it only logs"
    )
    prefill_min: int = Field(0, ge=0, description="prefill workers that are kept even when nothing waits")
    prefill_max: int = Field(4, ge=1, description="prefill workers at most; how many there are follows the queue")
    prefill_cpus: float = Field(1.0, ge=0, description="CPUs that a prefill worker asks Ray for")
    prefill_gpus: float = Field(0.0, ge=0, description="GPUs that a prefill worker asks Ray for")
    prefill_idle_s: float = Field(60.0, ge=0, description="a prefill worker too many is sent home after so long")
    api_keys: Literal["open", "required"] = Field(
        "open", description="whether whoever asks over HTTP must show a key; open: everybody is the tenant local"
    )
    data: str = Field("~/.x2l/up", description="the folder of `x2l up`: its state, coarse blocks and originals")
    fine_bytes: int = Field(1 << 30, ge=1 << 20, description="memory in which `x2l up` keeps fine blocks")
    host_bytes: int = Field(256 << 20, ge=0, description="shared memory for copies of coarse blocks of `x2l up`")
    device: str | None = Field(None, description="cpu, cuda, cuda:1 …; by default a GPU if there is one")
    dtype: str | None = Field(None, description="bfloat16, float16 or float32; by default what suits the device")
    cache_bytes: int = Field(2 << 30, ge=0, description="bytes of assembled KV pages kept hot in the process")
    decode_deadline_s: float = Field(30.0, gt=0, description="a video decoder without progress for so long is killed")

    @classmethod
    def over(cls, chosen: Mapping[str, Any]) -> Self:
        """The environment's, but for what is chosen. Raises InvalidInput, naming what is wrong or no setting."""
        if unknown := set(chosen) - set(cls.model_fields):
            raise InvalidInput(
                f"{', '.join(sorted(unknown))}: no such setting; there are {', '.join(cls.model_fields)}"
            )
        try:
            return cls(**chosen)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            raise InvalidInput(f"among the settings (X2L_…): {wrong}") from None
