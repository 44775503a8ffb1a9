"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from x2l_cluster.errors import InvalidInput
from x2l_cluster.types import Detail


class Scorer(StrEnum):
    """What may rank chunks; spelt out here so that a wrong name is refused before anything heavy is loaded."""

    CALIBRATED = "calibrated"
    COARSE = "coarse"
    ATTENTION_MEAN = "attention_mean"
    EMBEDDING = "embedding"
    RANDOM = "random"
    UNIFORM_STRIDE = "uniform_stride"
    RECENT = "recent"


class Transport(StrEnum):
    """How a bench reaches its server."""

    UNIX = "unix"
    TCP = "tcp"


class ApiKeys(StrEnum):
    """Whether a service asks for keys."""

    OPEN = "open"
    REQUIRED = "required"


def _detail(text: str | Detail) -> Detail:
    try:
        return Detail.parse(text) if isinstance(text, str) else text
    except InvalidInput as error:
        raise typer.BadParameter(str(error)) from None


AUTO = Detail()

VideoFile = Annotated[Path, typer.Argument(metavar="FILE", help="A video file.")]
VideoId = Annotated[str, typer.Argument(metavar="VIDEO", help="Id of an indexed video, as `x2l videos` lists it.")]
Question = Annotated[str, typer.Argument(metavar="QUESTION", help="The question.")]
Questions = Annotated[
    list[str], typer.Argument(metavar="QUESTION", help="One or more questions; they are answered in one batch.")
]
ModelName = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Bundled name, folder, or owner/name of a checkpoint (X2L_MODEL)."),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Where indexes are kept: disk:PATH, memory:, tiers:URL|URL|disk:PATH, fastest first, or up: for all that "
        "`x2l up` keeps (X2L_STORE).",
    ),
]
FineStore = Annotated[
    str | None,
    typer.Option(
        "--fine-store",
        metavar="URL",
        help="Where fine blocks are kept instead: redis://…, valkey://… or unix://… (X2L_FINE_STORE).",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="PATH", help="The folder of `x2l up`, with all it keeps (X2L_DATA)."),
]
DetailOption = Annotated[
    Detail,
    typer.Option(
        "--detail",
        parser=_detail,
        metavar="HOW",
        show_default=False,
        help="How much fine detail to reload: auto (by default), coarse, fine, k=CHUNKS or budget=BYTES.",
    ),
]
ScorerOption = Annotated[Scorer, typer.Option("--scorer", help="What ranks the chunks.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")]
Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", envvar="X2L_URL", help="A service that does it, as `x2l up` prints it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout, also when it fails.")]
