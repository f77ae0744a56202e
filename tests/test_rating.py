import numpy as np
import pytest
from datasets import Dataset

from hf_lmmixup.datastore import build
from hf_lmmixup.rating import rate_with_datastore, split_by_score
from hf_lmmixup.records import LOADED, RATED, row_id


class LengthEncoder:
    """Places a text on the unit circle by the number of its words: texts of like length are neighbours."""

    name, revision = "length", None

    def encode(self, texts):
        angles = np.array([min(len(text.split()), 40) / 40 for text in texts]) * np.pi / 2
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def rows(*completions):
    prompts = [f"question {number}" for number in range(len(completions))]
    ids = [row_id(*pair) for pair in zip(prompts, completions, strict=True)]
    columns = {"id": ids, "prompt": prompts, "completion": list(completions), "source": ["x"] * len(ids)}
    return Dataset.from_dict(columns, features=LOADED)


def length_datastore():
    texts = ["w " * count for count in range(1, 41)]
    return build(texts, [0 if len(text.split()) < 20 else 5 for text in texts], ["qa"] * 40, LengthEncoder())


def test_a_datastore_gives_each_row_the_nearest_class_of_its_expected_score():
    outcome = rate_with_datastore(rows("a", "w " * 36), length_datastore(), LengthEncoder())
    assert outcome.dataset["score"][:] == [0, 5]
    assert outcome.dataset["rating"][:] == [None, None]
    assert outcome.dataset["rating_error"][:] == [None, None]
    assert outcome.dataset.features == RATED
    assert outcome.dropped == {}


def test_a_datastore_of_another_encoder_is_refused():
    encoder = LengthEncoder()
    encoder.name = "other"
    with pytest.raises(ValueError, match="built with the encoder 'length', not 'other'"):
        rate_with_datastore(rows("a"), length_datastore(), encoder)


def test_rating_an_empty_dataset_gives_the_columns():
    outcome = rate_with_datastore(rows("a").select([]), length_datastore(), LengthEncoder())
    assert outcome.dataset.features == RATED and len(outcome.dataset) == 0


def test_split_by_score_keeps_order_and_never_guesses():
    rated = rows("a", "b", "c", "d").add_column("score", [5, None, 3, 4])
    high, low, unrated = split_by_score(rated)
    assert [part["completion"][:] for part in (high, low, unrated)] == [["a", "d"], ["c"], ["b"]]
    assert [len(part) for part in split_by_score(rated, threshold=3)] == [3, 0, 1]
