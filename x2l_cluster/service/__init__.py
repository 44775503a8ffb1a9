"""The seam between those who ask and those who do the work, and its in-process implementation."""

from x2l_cluster.service.base import Service
from x2l_cluster.service.requests import Ask, EstimateRequest, IndexRequest, SearchRequest

__all__ = ["Ask", "EstimateRequest", "IndexRequest", "SearchRequest", "Service"]
