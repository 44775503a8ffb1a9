"""Video language models behind one seam: one adapter per family, and the attention they share."""

from x2l_cluster.models.attend import Page, View
from x2l_cluster.models.base import ModelSpec, Prompt, Step, Tokens, Trace, VideoLM
from x2l_cluster.models.registry import load_model

__all__ = ["ModelSpec", "Page", "Prompt", "Step", "Tokens", "Trace", "VideoLM", "View", "load_model"]
