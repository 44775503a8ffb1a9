"""X²L on one device: prefill, score, plan, reload, decode. No Ray, no server, no network."""

from x2l_cluster.engine.answer import Answerer
from x2l_cluster.engine.assemble import Assembler, Prefix
from x2l_cluster.engine.calibrated import find_calibration
from x2l_cluster.engine.decode import Decoder, Generation, Stream
from x2l_cluster.engine.engine import VideoEngine
from x2l_cluster.engine.index import Indexer, Progress
from x2l_cluster.engine.loop import AnswerLoop, Limits
from x2l_cluster.engine.prefill import Prefilled, Prefiller
from x2l_cluster.engine.ticket import Completed, Delta, Event, Evidenced, Failed, Planned, Ticket
from x2l_cluster.engine.work import Asked
from x2l_cluster.stores import Stores

__all__ = [
    "AnswerLoop",
    "Answerer",
    "Asked",
    "Assembler",
    "Completed",
    "Decoder",
    "Delta",
    "Event",
    "Evidenced",
    "Failed",
    "Generation",
    "Indexer",
    "Limits",
    "Planned",
    "Prefilled",
    "Prefiller",
    "Prefix",
    "Progress",
    "Stores",
    "Stream",
    "Ticket",
    "VideoEngine",
    "find_calibration",
]
