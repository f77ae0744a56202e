"""The index of a journal's keys against a dict, also where keys share a hash."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lmmixup import key_places
from hf_lmmixup.key_places import KeyPlaces


@pytest.fixture(scope="module", autouse=True)
def small_and_colliding():
    """Three keys in the dict, and hashes that are equal for keys of one length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_places, "NEWEST", 3)
        patch.setattr(key_places, "hash", len, raising=False)
        yield


@given(st.dictionaries(st.text(max_size=4), st.integers(0, 2**62), max_size=40), st.text(max_size=4))
def test_every_key_is_among_its_candidates_and_others_share_their_hash(expected, other):
    places = KeyPlaces()
    for key, place in expected.items():
        places.add(key, place)
    assert len(places) == len(expected)
    assert list(places) == sorted(expected.values())
    for key, place in expected.items():
        found = places.candidates(key)
        assert place in found
        assert set(found) <= {expected[twin] for twin in expected if len(twin) == len(key)}
    if not any(len(key) == len(other) for key in expected):
        assert places.candidates(other) == []


def test_a_journal_tells_keys_of_one_hash_apart(tmp_path):
    from hf_lmmixup.journal import Journal

    keys = [f"{number:04}" for number in range(20)]
    with Journal(tmp_path / "a.journal", {}) as journal:
        for number, key in enumerate(keys):
            assert key not in journal
            journal.add(key, number)
        with pytest.raises(ValueError, match="recorded"):
            journal.add("0003", 1)
        with pytest.raises(KeyError):
            journal["abcd"]
    with Journal(tmp_path / "a.journal", {}) as journal:
        assert list(journal) == keys and [journal[key] for key in keys] == list(range(20)) and len(journal) == 20
