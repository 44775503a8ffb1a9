"""Talks to a service over HTTP: :class:`X2L` from plain code, :class:`AsyncX2L` from asyncio.

::

    with X2L("http://127.0.0.1:8421") as x2l:
        job = x2l.wait(x2l.index("lecture.mp4").id)
        for event in x2l.answers("What is written on the board?", [job.video]):
            ...
"""

from x2l_cluster.client.asynchronous import AsyncX2L
from x2l_cluster.client.calls import AppendOptions, AskOptions, IndexOptions
from x2l_cluster.client.options import DEFAULT_URL
from x2l_cluster.client.retry import Retry
from x2l_cluster.client.sync import X2L

__all__ = ["DEFAULT_URL", "X2L", "AppendOptions", "AskOptions", "AsyncX2L", "IndexOptions", "Retry"]
