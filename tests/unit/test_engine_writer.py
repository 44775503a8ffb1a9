"""Pieces of text: whole characters, nothing of a stop text, and joined the final text."""

from __future__ import annotations

import pytest

from tests.tiny import byte_tokenizer
from x2l_cluster.engine.writer import Writer

TOKENIZER = byte_tokenizer()


def words(ids) -> str:
    return str(TOKENIZER.decode(list(ids), skip_special_tokens=True))


def ids(text: str | bytes) -> list[int]:
    """A token a byte."""
    if isinstance(text, str):
        return list(TOKENIZER(text, add_special_tokens=False).input_ids)
    alphabet = {bytes([n]): TOKENIZER.convert_tokens_to_ids(c) for n, c in _byte_chars().items()}
    return [alphabet[bytes([byte])] for byte in text]


def _byte_chars() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return dict(bytes_to_unicode())


def pieces(tokens: list[int], stop=(), end: str | None = None) -> list[str]:
    writer = Writer(words, stop)
    written = [writer.more(tokens[: n + 1]) for n in range(len(tokens))]
    return [*written, writer.end(words(tokens).strip() if end is None else end)]


@pytest.mark.parametrize(
    "text",
    ["plain words", "  white \n space around \n ", "naïve — “ziffern” 😀 ende", "日本語のテキスト", "", "   ", "�"],
)
def test_pieces_joined_are_the_text(text):
    assert "".join(pieces(ids(text))) == text.strip()


def test_no_piece_holds_half_a_character():
    written = pieces(ids("a😀b"))
    assert "".join(written) == "a😀b"
    assert not any("�" in piece for piece in written)
    assert written[1:4] == ["", "", ""]


def test_bytes_that_are_no_text_do_not_hold_up_or_change_what_follows():
    tokens = ids(b"ok \xff\xfe\xe2\x82 then \xf0\x9f")
    assert "".join(pieces(tokens)) == words(tokens).strip()


def test_text_is_shown_as_soon_as_it_cannot_change():
    assert pieces(ids("ab c")) == ["a", "b", "", " c", ""]


def test_what_may_become_a_stop_text_is_held_back_until_it_is_not():
    stop = ("END", "\n\n")
    assert pieces(ids("aENx\nb"), stop) == ["a", "", "", "ENx", "", "\nb", ""]
    written = pieces(ids("so be it EN"), stop, end="so be it")  # the last token brought END, which is cut off
    assert "".join(written) == "so be it"
