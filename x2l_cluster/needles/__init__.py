"""Synthetic needle-in-a-video suite: write a script, render it, ask about it, grade the answers."""

from __future__ import annotations

from x2l_cluster.needles.backgrounds import Footage, load_footage
from x2l_cluster.needles.questions import KINDS, Kind, Question, grade, make_questions, needed_chunks
from x2l_cluster.needles.script import Code, Marker, Scene, Script, Split, make_script

__all__ = [
    "KINDS",
    "Code",
    "Footage",
    "Kind",
    "Marker",
    "Question",
    "Scene",
    "Script",
    "Split",
    "grade",
    "load_footage",
    "make_questions",
    "make_script",
    "needed_chunks",
    "render",
    "write_mp4",
]


def __getattr__(name: str) -> object:
    # Scripts, questions and grading are light; the renderer brings in the drawing code only when asked for.
    if name == "render":
        from x2l_cluster.needles.drawing import render

        return render
    if name == "write_mp4":
        from x2l_cluster.needles.files import write_mp4

        return write_mp4
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
