"""``x2l``: index videos, ask them questions, look at plans. Data goes to stdout, progress and errors to stderr."""

from __future__ import annotations


def main() -> None:
    """Entry point of the command line."""
    from x2l_cluster.cli.app import run

    run()
