import json
import logging
from itertools import permutations

import numpy as np
import pytest
from datasets import Dataset

from hf_lmmixup.chat_model import ChatReply
from hf_lmmixup.datastore import build
from hf_lmmixup.dispatch import TooManyRejects
from hf_lmmixup.rating import combine_ratings, health_of, rate, rate_with_datastore, split_by_score
from hf_lmmixup.rating_prompt import ONE_DIGIT
from hf_lmmixup.records import LOADED, RATED, RATING_AXES, row_id


class LengthEncoder:
    """Places a text on the unit circle by the number of its words: texts of like length are neighbors."""

    name, revision = "length", None

    def encode(self, texts):
        angles = np.array([min(len(text.split()), 40) / 40 for text in texts]) * np.pi / 2
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


class Rater:
    """Gives every text the overall judgement that `judge` says; counts how often it was asked."""

    name, settings = "rater", {"model": "rater"}

    def __init__(self, judge):
        self.judge, self.asked = judge, 0

    def replies(self, requests, stop=None):
        for request in requests:
            self.asked += 1
            text = json.loads(request.messages[-1]["content"].split("\n")[2])
            overall = self.judge(text)
            if isinstance(overall, int):
                yield ChatReply(request.key, json.dumps({**dict.fromkeys(RATING_AXES, 3), "overall": overall}))
            else:
                yield ChatReply(request.key, error=overall)


def by_number(text):
    return int(text.rsplit(" ", 1)[1])


def rows(*completions):
    prompts = [f"question {number}" for number in range(len(completions))]
    ids = [row_id(*pair) for pair in zip(prompts, completions, strict=True)]
    columns = {"id": ids, "prompt": prompts, "completion": list(completions), "source": ["x"] * len(ids)}
    return Dataset.from_dict(columns, features=LOADED)


# ---- chat models ----


def test_ratings_are_compressed_to_scores(tmp_path):
    overall = list(range(1, 11))
    outcome = rate(rows(*(f"a {value}" for value in overall)), Rater(by_number), tmp_path)
    assert outcome.dataset.features == RATED
    assert outcome.dataset["score"][:] == [0, 0, 0, 0, 1, 2, 3, 4, 5, 5]  # min(9, max(4, overall)) - 4
    assert [rating["overall"] for rating in outcome.dataset["rating"]] == overall
    assert outcome.dataset["rating_error"][:] == [None] * 10 and outcome.dropped == {}


def test_an_expected_digit_gives_the_nearest_score_and_no_rating(tmp_path):
    class Digits(Rater):
        def replies(self, requests, stop=None):
            for request in requests:
                text = json.loads(request.messages[-1]["content"].split("\n")[2])
                reply = {"expected": float(text.split()[-1]), "mass": 0.9 if "sure" in text else 0.2}
                yield ChatReply(request.key, json.dumps(reply))

    dataset = rows("sure 1.0", "sure 4.49", "sure 4.5", "sure 7.49", "sure 7.5", "sure 9.0", "vague 7.0")
    with pytest.raises(TooManyRejects) as caught:
        rate(dataset, Digits(None), tmp_path, rubric=ONE_DIGIT)
    rated = caught.value.outcome.dataset
    assert rated["score"][:] == [0, 0, 1, 3, 4, 5, None]
    assert rated["rating"][:] == [None] * 7
    assert rated["rating_error"][:] == [None] * 6 + ["the model does not answer with a digit"]


def test_what_was_paid_for_is_not_asked_again(tmp_path):
    dataset = rows(*(f"a {1 + number % 10}" for number in range(30)))
    first, second = Rater(by_number), Rater(by_number)
    once = rate(dataset, first, tmp_path)
    again = rate(dataset, second, tmp_path)
    assert (first.asked, second.asked) == (30, 0)
    assert list(once.dataset) == list(again.dataset)


def test_ids_from_elsewhere_may_stand_for_other_texts(tmp_path):
    rater = Rater(by_number)
    known = rows("text 9", "text 4").map(lambda row, place: {"id": f"x{place}"}, with_indices=True)
    changed = known.map(lambda row, place: {"completion": f"text {4 + 5 * place}"}, with_indices=True)
    doubled = known.map(lambda row: {"id": "x0"})
    for number, (dataset, scores) in enumerate([(known, [5, 0]), (changed, [0, 5]), (doubled, [5, 0])]):
        rated = rate(dataset, rater, tmp_path / str(number)).dataset
        assert rated["score"][:] == scores and rated["id"][:] == dataset["id"][:]
    with pytest.raises(ValueError, match="input"):
        rate(changed, rater, tmp_path / "0")


def test_equal_rows_are_rated_once_and_all_get_the_rating(tmp_path):
    dataset = rows("a 5", "b 7").select([0, 1, 0, 0])
    rater = Rater(by_number)
    assert rate(dataset, rater, tmp_path).dataset["score"][:] == [1, 3, 1, 1]
    assert rater.asked == 2


@pytest.mark.parametrize(("failing", "fails"), [(1, False), (2, False), (3, True), (40, True)])
def test_more_rejects_than_allowed_fail_the_run_and_keep_its_result(failing, fails, tmp_path, caplog):
    dataset = rows(*(f"a {number}" for number in range(40)))
    rater = Rater(lambda text: "refusal" if by_number(text) < failing else 7)
    if fails:
        with pytest.raises(TooManyRejects, match=f"{failing} of 40 rows got no score, 5% may") as caught:
            rate(dataset, rater, tmp_path)
        outcome = caught.value.outcome
    else:
        outcome = rate(dataset, rater, tmp_path)
    assert outcome.dataset["rating_error"][:] == ["refusal"] * failing + [None] * (40 - failing)
    assert outcome.dataset["score"][:] == [None] * failing + [3] * (40 - failing)
    assert "'refusal': " in caplog.text


def test_a_collapsed_rater_is_reported(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        rate(rows(*(f"a {number}" for number in range(40))), Rater(lambda text: 7), tmp_path)
    assert "100% of the rows have score 3" in caplog.text


def test_no_rows_are_rated_without_asking(tmp_path):
    outcome = rate(rows("a 1").select([]), Rater(by_number), tmp_path)
    assert outcome.dataset.features == RATED and len(outcome.dataset) == 0


def test_other_columns_are_kept_and_an_older_rating_is_replaced(tmp_path):
    dataset = rows("a 5", "b 7").add_column("cluster", [4, 2]).add_column("score", [0, 0])
    rated = rate(dataset, Rater(by_number), tmp_path).dataset
    assert rated["cluster"][:] == [4, 2] and rated["score"][:] == [1, 3]


def test_the_task_type_is_a_setting(tmp_path):
    rate(rows("a 5"), Rater(by_number), tmp_path)
    with pytest.raises(ValueError, match="task_type was 'qa' and is 'mcq'"):
        rate(rows("a 5"), Rater(by_number), tmp_path, task_type="mcq")
    with pytest.raises(ValueError, match="Unknown task type 'poem'"):
        rate(rows("a 5"), Rater(by_number), tmp_path / "other", task_type="poem")


# ---- datastore ----


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


def test_a_datastore_that_abstains_gives_no_score():
    class Abstaining:
        encoder = "length"

        def judge(self, texts, encoder, task_type):
            return [float("nan"), float("nan"), 2.5]

    outcome = rate_with_datastore(rows("a", "b", "c"), Abstaining(), LengthEncoder())
    assert outcome.dataset["score"][:] == [None, None, 3]
    assert outcome.dataset["rating_error"][:] == ["the datastore abstains"] * 2 + [None]


def test_a_datastore_of_another_encoder_is_refused():
    encoder = LengthEncoder()
    encoder.name = "other"
    with pytest.raises(ValueError, match="built with the encoder 'length', not 'other'"):
        rate_with_datastore(rows("a"), length_datastore(), encoder)


def test_rating_an_empty_dataset_gives_the_columns():
    outcome = rate_with_datastore(rows("a").select([]), length_datastore(), LengthEncoder())
    assert outcome.dataset.features == RATED and len(outcome.dataset) == 0


# ---- several raters, splitting ----


def rated(scores, ratings=None):
    dataset = rows(*(f"a {number}" for number in range(len(scores))))
    columns = {
        **dataset.to_dict(),
        "rating": [value and dict.fromkeys(RATING_AXES, value) for value in ratings or [None] * len(scores)],
        "score": scores,
        "rating_error": [None if score is not None else "refusal" for score in scores],
    }
    return Dataset.from_dict(columns, features=RATED)


def test_several_raters_are_combined_by_their_median():
    raters = [
        rated([5, 0, None, None, 2], [9, 4, None, None, 6]),
        rated([4, 5, 3, None, 3], [8, 9, 7, None, 7]),
        rated([0, 5, None, None, None]),
    ]
    combined = combine_ratings(raters).dataset
    assert combined["score"][:] == [4, 5, 3, None, 3]  # halves are rounded up
    assert [rating and rating["rarity"] for rating in combined["rating"]] == [9, 7, 7, None, 7]
    assert combined["rating_error"][:] == [None, None, None, "0 of 3 raters gave a score", None]
    strict = combine_ratings(raters, min_raters=2, max_spread=4).dataset
    assert strict["rating_error"][:] == [
        "raters disagree by more than 4",
        "raters disagree by more than 4",
        "1 of 3 raters gave a score",
        "0 of 3 raters gave a score",
        None,
    ]
    assert strict.features == RATED


def test_combining_does_not_depend_on_the_order_of_raters():
    raters = [rated([0, None, 3, 1]), rated([5, None, None, 2]), rated([4, 1, 2, None])]
    combined = [combine_ratings(order).dataset["score"][:] for order in permutations(raters)]
    assert combined == [[4, 1, 3, 2]] * 6


def test_ratings_of_other_rows_are_not_combined():
    with pytest.raises(ValueError, match="same rows in the same order"):
        combine_ratings([rated([1, 2]), rated([1])])
    with pytest.raises(ValueError, match="if there are some"):
        combine_ratings([])


def test_split_by_score_keeps_order_and_never_guesses():
    high, low, unrated = split_by_score(rated([5, None, 3, 4]))
    assert [part["completion"][:] for part in (high, low, unrated)] == [["a 0", "a 3"], ["a 2"], ["a 1"]]
    assert [len(part) for part in split_by_score(rated([5, None, 3, 4]), threshold=3)] == [3, 0, 1]


def test_health_counts_the_unrated():
    health = health_of(rated([5, None, 3, 5]))
    assert (health.rated, health.unrated, health.shares) == (3, 1, {3: pytest.approx(1 / 3), 5: pytest.approx(2 / 3)})
