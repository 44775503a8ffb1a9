"""What holds for every object of every overlay. A policy names what breaks it, and comes with ways to break it."""

from tests.manifests.policies import network, pods, ray, stores
from tests.manifests.policies.policy import POLICIES, Policy

__all__ = ["POLICIES", "Policy", "network", "pods", "ray", "stores"]
