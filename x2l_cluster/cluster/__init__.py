"""Engines on many machines: Ray workers that index and answer, and who sends what to which of them."""

from x2l_cluster.cluster.answering import Answering, answerer
from x2l_cluster.cluster.front import front
from x2l_cluster.cluster.gateway import gateway
from x2l_cluster.cluster.indexing import Fleet
from x2l_cluster.cluster.parts import RayParts
from x2l_cluster.cluster.place import Place
from x2l_cluster.cluster.supervised import indexer
from x2l_cluster.cluster.supervisor import Supervisor
from x2l_cluster.cluster.workers import RayWorkers

__all__ = [
    "Answering",
    "Fleet",
    "Place",
    "RayParts",
    "RayWorkers",
    "Supervisor",
    "answerer",
    "front",
    "gateway",
    "indexer",
]
