"""The hook that empties a worker before it goes says things that this version of Ray understands."""

from __future__ import annotations

import shlex

from ray.scripts.scripts import drain_node

from tests.manifests.rendered import objects, pods


def test_ray_takes_the_words_of_the_hook():
    hooks = [
        pod.spec["containers"][0]["lifecycle"] for pod in pods(objects("ha")) if pod.group and pod.component != "head"
    ]
    assert len(hooks) == 3
    for hook in hooks:
        *_, script, seconds = hook["preStop"]["exec"]["command"]
        drain, _, wait = script.replace("$0", seconds).partition(";")
        ray, command, *words = shlex.split(drain)
        assert (ray, command) == ("ray", drain_node.name)
        context = drain_node.make_context(command, words)
        assert context.params["deadline_remaining_seconds"] == int(seconds)
        assert shlex.split(wait) == ["sleep", seconds]
