"""The pipe to the decoder process, and the weight of that process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from x2l_cluster.video import wire


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def test_messages_arrive_whole(pipe: tuple[int, int]) -> None:
    read, write = pipe
    wire.send(write, {"type": "batch", "shape": [1, 2]}, memoryview(b"pixels"))
    wire.send(write, {"type": "end"})
    assert wire.receive(read, 1.0) == ({"type": "batch", "shape": [1, 2]}, bytearray(b"pixels"))
    assert wire.receive(read, 1.0) == ({"type": "end"}, bytearray())


def test_silence_is_noticed(pipe: tuple[int, int]) -> None:
    with pytest.raises(wire.Stalled):
        wire.receive(pipe[0], 0.01)


def test_a_message_cut_short_is_noticed(pipe: tuple[int, int]) -> None:
    read, write = pipe
    wire.send(write, {"type": "batch"}, b"x" * 100)
    half = os.read(read, 4096)[:60]
    os.write(write, half)
    os.close(write)
    with pytest.raises(wire.Ended):
        wire.receive(read, 1.0)


def test_absurd_lengths_are_refused_before_memory_is_taken(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"\xff" * 12)
    with pytest.raises(wire.Ended, match="no sense"):
        wire.receive(pipe[0], 1.0)


def test_the_decoder_process_is_light() -> None:
    heavy = "{'torch', 'transformers', 'decord', 'PIL', 'fsspec', 'ray'}"
    code = f"import sys, x2l_cluster.video.child; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
