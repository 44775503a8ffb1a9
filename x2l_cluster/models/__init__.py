"""Video language models behind one seam: one adapter per family, and the attention they share."""

from x2l_cluster.models.base import ModelSpec, Prompt, Step, Tokens, Trace, VideoLM
from x2l_cluster.models.pages import Page, Stretch
from x2l_cluster.models.registry import load_model
from x2l_cluster.models.view import View

__all__ = ["ModelSpec", "Page", "Prompt", "Step", "Stretch", "Tokens", "Trace", "VideoLM", "View", "load_model"]
