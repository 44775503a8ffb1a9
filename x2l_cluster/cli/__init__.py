"""``x2l``: index videos, ask them questions, look at plans. Data goes to stdout, progress and errors to stderr."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Entry point of the command line; ends the process with one of the exit codes that ``x2l --help`` lists."""
    try:
        from x2l_cluster.cli.run import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while the interpreter was still importing
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is said and closed; one more Ctrl-C needs no traceback
    sys.exit(code)
