"""Runs a command line; a failure becomes a line on stderr, an object on stdout with ``--json``, and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from x2l_cluster.cli.app import app
from x2l_cluster.cli.show import emit, err
from x2l_cluster.errors import (
    AccessError,
    Cancelled,
    InvalidInput,
    ManifestConflict,
    ModelError,
    ModelNotAvailable,
    NotFound,
    StaleEpoch,
    VideoError,
    VideoFileNotFound,
    X2LError,
)

INTERRUPTED = 130

# Typer brings its own copy of click since 0.26 and the real one before; its public BadParameter has the root of the
# errors about usage among its bases either way.
_Usage: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def run(words: Sequence[str]) -> int:
    """Runs ``x2l WORDS…`` and returns its exit code. Errors of ours never show a traceback; bugs do."""
    as_json = "--json" in words
    try:
        # Outside its standalone mode typer leaves errors to us, and returns the code of a typer.Exit.
        code = app(list(words), prog_name="x2l", standalone_mode=False)
        sys.stdout.flush()
    except X2LError as error:
        return _failed(error.code, str(error), exit_code(error), as_json=as_json, retryable=error.retryable)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left; keep the interpreter from flushing again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _Usage as error:
        error.show()  # type: ignore[attr-defined]
        if as_json:
            emit({"error": {"code": "usage", "message": error.format_message(), "retryable": False}})  # type: ignore[attr-defined]
        return 2
    except Exception as error:
        if as_json:
            emit({"error": {"code": "internal", "message": f"{type(error).__name__}: {error}", "retryable": False}})
        raise
    if code == INTERRUPTED:  # what typer makes of Ctrl-C, from some version on
        return _failed("cancelled", "interrupted", INTERRUPTED, as_json=as_json, retryable=False)
    return code if isinstance(code, int) else 0


def exit_code(error: X2LError) -> int:
    """What a process that failed so ends with; ``x2l --help`` tells people."""
    if isinstance(error, Cancelled):
        return INTERRUPTED
    if isinstance(error, NotFound | VideoFileNotFound | ModelNotAvailable):
        return 4
    if error.retryable or isinstance(error, StaleEpoch):
        return 5
    if isinstance(error, AccessError | InvalidInput | VideoError | ModelError | ManifestConflict):
        return 3
    return 1


def _failed(code: str, message: str, status: int, *, as_json: bool, retryable: bool) -> int:
    err.print(code, style="red", end=": ")
    err.print(message, soft_wrap=True)
    if as_json:
        emit({"error": {"code": code, "message": message, "retryable": retryable}})
    return status
