"""Text as it is written: pieces that can be shown at once and never have to be taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

HALF: Final = "\ufffd"
"""What a tokenizer shows of a character whose bytes are not all there."""


class Writer:
    """Turns growing token ids into pieces of text. The pieces joined are the final text, to the character.

    Held back: half characters, white space at both ends (answers are stripped), and what may become a stop text.

    Args:
        words: token ids to text.
        stop: texts that end an answer and are no part of it.
    """

    def __init__(self, words: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._words = words
        self._stop = stop
        self._text = ""
        self._from = self._upto = 0
        self._sent = 0

    def more(self, ids: Sequence[int]) -> str:
        """What can be shown of these ids and was not yet; often nothing."""
        self._grow(ids)
        shown = self._text.lstrip()
        return self._send(shown[: len(shown) - self._doubtful(shown)].rstrip())

    def end(self, text: str) -> str:
        """The last piece of the final text."""
        return self._send(text)

    def _grow(self, ids: Sequence[int]) -> None:
        """Decodes a window only: its first part is known already and ends with a whole character."""
        window = self._words(ids[self._from :])
        known = len(self._words(ids[self._from : self._upto]))
        if len(window) > known and not window.endswith(HALF):
            self._text += window[known:]
            self._from, self._upto = self._upto, len(ids)

    def _doubtful(self, text: str) -> int:
        """How many characters at the end are the beginning of a stop text."""
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return max(lengths, default=0)

    def _send(self, text: str) -> str:
        piece = text[self._sent :]
        self._sent = max(self._sent, len(text))
        return piece
