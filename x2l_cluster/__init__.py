"""Video-X²L as a service: index a long video once, then reload full detail only where a question needs it.

The public surface is small on purpose; see ``ARCHITECTURE.md`` for the map of the rooms::

    from x2l_cluster import VideoEngine

    engine = VideoEngine.from_pretrained("reference", store="disk:~/.x2l")
    video = engine.index("lecture.mp4")
    print(engine.ask(video, "What code is shown with the red star?").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from x2l_cluster.engine import VideoEngine

__version__ = "0.1.0"
__all__ = ["VideoEngine", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that light processes (the decoder child, a client) can import the package without torch.
    if name == "VideoEngine":
        from x2l_cluster.engine import VideoEngine

        return VideoEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
