"""What a peer wrote reaches databases and terminals as plain text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.text import clean_text, is_clean

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates too


@pytest.mark.parametrize(
    ("text", "shown"),
    {
        "words": ("two words, é 漢", "two words, é 漢"),
        "several lines": ("a\nb\tc\r\n", "a b c  "),
        "a title for the window": ("\x1b]0;owned\x07", "\ufffd]0;owned\ufffd"),
        "half a character": ("\ud800", "\ufffd"),
        "the end of a C string": ("a\x00b", "a\ufffdb"),
        "right to left": ("\u202egnp", "\ufffdgnp"),
    }.values(),
)
def test_what_does_not_print_is_replaced(text: str, shown: str) -> None:
    assert clean_text(text) == shown


@given(ANY_TEXT)
def test_clean_text_prints_encodes_and_stays_as_it_is(text: str) -> None:
    clean = clean_text(text, 20)
    assert clean.isprintable()
    assert clean.encode().decode() == clean
    assert len(clean) == min(len(text), 20)
    assert clean_text(clean) == clean
    assert is_clean(clean, 20)
    assert is_clean(text, 20) == (clean == text)
