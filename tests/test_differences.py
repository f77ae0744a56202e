"""Words that a text shares with others, and words that it adds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.differences import compare, words


@pytest.mark.parametrize(
    ("text", "others", "added"),
    [
        ("The Moon pulls twice.", ["The Moon pulls. It is big."], ["twice"]),
        ("THE MOON!", ["the moon"], []),  # case and marks do not count
        ("of the and", [], []),  # function words never do
        ("tides rise and fall", ["tides"], ["rise and fall"]),  # they count between added words
        ("tides and rise", ["rise"], ["tides"]),  # and not beside one
        ("in 1843 at 7 %", ["1843"], ["7"]),  # figures tell, however short
        ("月 moon", ["moon"], ["月"]),  # other scripts have short words
        ("new", [], ["new"]),
        ("", ["a"], []),
        ("old new", ["old"], ["new"]),
        ("new old", ["old"], ["new"]),
    ],
)
def test_added_words(text, others, added):
    assert [piece for piece, found in compare(text, others) if not found] == added


@settings(deadline=None)
@given(st.text(alphabet="ab cd.1é\n<", max_size=60), st.lists(st.text(alphabet="ab cd.1é", max_size=12), max_size=3))
def test_pieces_give_the_text_and_alternate(text, others):
    pieces = compare(text, others)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(first[1] != second[1] for first, second in zip(pieces, pieces[1:], strict=False))
    added = words(piece for piece, found in pieces if not found)
    assert not added & words(others)
    assert added | words(others) >= words([text])
