"""Limits of the HTTP face, from the environment (prefix ``X2L_API_``)."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ApiSettings(BaseSettings):
    """What one caller may send and how long the service waits for it."""

    model_config = SettingsConfigDict(env_prefix="X2L_API_", frozen=True, extra="ignore")

    hosts: tuple[str, ...] = Field(
        (), description="names the service is called by, besides bare addresses; by default any"
    )
    max_body_bytes: int = Field(1 << 20, gt=0, description="of a request that is no upload")
    max_upload_bytes: int = Field(32 << 30, gt=0, description="of an uploaded video")
    body_idle_s: float = Field(30.0, gt=0, description="a request whose body stands still for so long is given up")
    upload_s: float = Field(7200.0, gt=0, description="the longest a whole body may take")
    max_wait_s: float = Field(60.0, ge=0, description="the longest that ?wait= holds a request")
    heartbeat_s: float = Field(15.0, gt=0, description="a comment is sent so often while a stream has nothing to say")
    send_s: float = Field(60.0, gt=0, description="a reader of a stream that takes nothing for so long is left")
