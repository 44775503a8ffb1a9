"""Each policy holds in every overlay, and each can fail: a manifest that is broken on purpose is noticed."""

from __future__ import annotations

import pytest

from tests.manifests.policies import POLICIES, Policy
from tests.manifests.rendered import OVERLAYS, objects

BREAKS = [(policy, place) for policy in POLICIES for place in range(len(policy.breaks))]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_policy_holds(policy: Policy, overlay: str):
    assert not list(policy.broken(objects(overlay)))


@pytest.mark.parametrize(("policy", "place"), BREAKS, ids=[f"{policy.name}-{place}" for policy, place in BREAKS])
def test_policy_notices_a_broken_manifest(policy: Policy, place: int):
    things = objects(OVERLAYS[-1])
    policy.breaks[place](things)
    assert list(policy.broken(things))


def test_every_policy_can_fail():
    assert all(policy.breaks for policy in POLICIES)
