"""``x2l sample``: a video to try things on, with questions that the bundled model can be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from x2l_cluster.cli.options import AsJson
from x2l_cluster.cli.show import emit, err, line
from x2l_cluster.errors import InvalidInput


def sample(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the video goes; its name ends in .mp4.")],
    seconds: Annotated[float, typer.Option(min=16, help="How long it is.")] = 192.0,
    seed: Annotated[int, typer.Option(min=0, help="Another number, another video.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Render a video of signs and codes, and print questions about it with the right answers."""
    if file.suffix != ".mp4":
        raise InvalidInput(f"the video is an mp4: give a name that ends in .mp4, not {file.name}")
    if file.exists():
        raise InvalidInput(f"{file} is there already; give another name, or remove it")
    from x2l_cluster.needles import make_questions, make_script
    from x2l_cluster.needles.files import write_mp4

    script = make_script(seed, duration_s=seconds, split="eval")
    part = file.with_suffix(".part")
    try:
        with err.status(f"rendering {file.name}"):
            write_mp4(script, part)
        part.replace(file)
    except OSError as error:
        raise InvalidInput(f"the video cannot be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)
    questions = make_questions(script, per_kind=1)
    if as_json:
        emit(
            {
                "file": str(file),
                "duration_s": script.duration_s,
                "questions": [{"kind": q.kind, "question": q.text, "answer": q.answer} for q in questions],
            }
        )
        return
    line(f"{file} is there; what can be asked about it, and what is right:")
    for question in questions:
        line(f"  {question.text}  {question.answer}")
