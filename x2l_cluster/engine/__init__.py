"""X²L on one device: prefill, score, plan, reload, decode. No Ray, no server, no network."""

from x2l_cluster.engine.answer import Answerer, Asked
from x2l_cluster.engine.assemble import Assembler, Prefix
from x2l_cluster.engine.decode import Decoder, Generation, Stream
from x2l_cluster.engine.engine import VideoEngine, find_calibration
from x2l_cluster.engine.index import Indexer, Progress
from x2l_cluster.engine.prefill import Prefilled, Prefiller
from x2l_cluster.engine.stores import Stores

__all__ = [
    "Answerer",
    "Asked",
    "Assembler",
    "Decoder",
    "Generation",
    "Indexer",
    "Prefilled",
    "Prefiller",
    "Prefix",
    "Progress",
    "Stores",
    "Stream",
    "VideoEngine",
    "find_calibration",
]
