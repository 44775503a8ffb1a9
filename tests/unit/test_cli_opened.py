"""What happens to Ctrl-C while a command is still getting ready."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from x2l_cluster.cli.opened import loading


def test_an_interrupt_that_a_library_kept_to_itself_comes_once_it_is_loaded():
    before = signal.getsignal(signal.SIGINT)

    def load() -> None:
        with loading("reference"):
            with suppress(BaseException):
                os.kill(os.getpid(), signal.SIGINT)
            went_on.append(True)

    went_on: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        load()
    assert went_on
    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_interrupt_nothing_is_raised():
    with loading("reference"):
        pass
