import random

import pytest
from datasets import Dataset

from hf_lmmixup import distilled_rows
from hf_lmmixup.distillation import MALFORMED, NO_COMPLETION, TOO_LONG, WRONG_FORM, distill
from hf_lmmixup.distilled_rows import NO_CLUSTER, split_answer
from hf_lmmixup.journal import Journal
from hf_lmmixup.prompts import distillation_messages, format_completion, prompt_hash
from hf_lmmixup.records import DISTILLED, row_id


ROWS = [  # id, prompt, completion, score, cluster
    ("c", "tides?", "the moon", 1, 0),
    ("a", "why tides", "pull of the Moon", 2, 0),
    ("b", "bread", "yeast", 0, 1),
    ("d", "bread rises?", "gas from yeast", None, 1),
    ("e", "alone", "nobody", 3, None),
]


def dataset(rows=ROWS):
    names = ("id", "prompt", "completion", "score", "cluster_id")
    return Dataset.from_dict({name: [row[i] for row in rows] for i, name in enumerate(names)})


class Scripted:
    """Answers by a word of the prompt; several answers are given one after another."""

    def __init__(self, **answers):
        self.answers = {word: list(texts) for word, texts in answers.items()}
        self.asked = []

    def __call__(self, conversations, *, seeds=None, on_reply=None):
        replies = []
        for place, messages in enumerate(conversations):
            word = next(word for word in self.answers if word in messages[-1]["content"])
            queue = self.answers[word]
            replies.append(queue.pop(0) if len(queue) > 1 else queue[0])
            self.asked.append((word, None if seeds is None else seeds[place]))
            if on_reply:
                on_reply(place, replies[-1])
        return replies


TIDES = format_completion("Both ask about tides.", "Q: What causes tides?\nA: The Moon's pull.")
BREAD = format_completion("Both ask about bread.", "Q: Why does bread rise?\nA: Yeast makes gas.")


def test_one_row_a_cluster_with_its_lineage():
    outcome = distill(dataset(), Scripted(tides=[TIDES], bread=[BREAD]), distiller_name="scripted")
    assert outcome.dataset.features == DISTILLED
    messages = distillation_messages(["Q: why tides\nA: pull of the Moon", "Q: tides?\nA: the moon"])
    assert outcome.dataset[0] == {
        "id": row_id("What causes tides?", "The Moon's pull."),
        "prompt": "What causes tides?",
        "completion": "The Moon's pull.",
        "reasoning": "Both ask about tides.",
        "cluster_id": 0,
        "sources": ["a", "c"],  # in order of id, not of the rows
        "source_scores": [2, 1],
        "distiller": "scripted",
        "prompt_hash": prompt_hash(messages),
    }
    assert outcome.dataset[1]["source_scores"] == [0, None]
    assert outcome.dropped == {"e": NO_CLUSTER}
    assert [record["reason"] for record in outcome.completions] == [None, None]


@pytest.mark.parametrize(
    ("scores", "read"),
    [
        # pandas makes decimals of whole numbers beside a missing one
        ([2.0, 0.0, 1.0, float("nan"), 3.0], [[0, 2], [1, None]]),
        ([None] * 5, [[None, None], [None, None]]),
    ],
)
def test_scores_that_are_whole_numbers_are_read_whatever_their_type(scores, read):
    rows = Dataset.from_dict({**dataset().to_dict(), "score": scores})
    outcome = distill(rows, Scripted(tides=[TIDES], bread=[BREAD]), distiller_name="scripted")
    assert outcome.dataset["source_scores"][:] == read


def test_scores_that_are_no_whole_numbers_are_refused_before_anything_is_asked():
    model = Scripted(tides=[TIDES], bread=[BREAD])
    for scores in ([2.5] * 5, ["good"] * 5):
        with pytest.raises(ValueError, match="The column score holds"):
            distill(Dataset.from_dict({**dataset().to_dict(), "score": scores}), model, distiller_name="s")
    assert model.asked == []


def test_the_order_of_the_rows_has_no_influence():
    def run(rows):
        outcome = distill(dataset(rows), Scripted(tides=[TIDES], bread=["junk"]), distiller_name="scripted")
        return outcome.dataset.to_list(), outcome.dropped, outcome.completions.to_list()

    expected = run(ROWS)
    for seed in range(5):
        assert run(random.Random(seed).sample(ROWS, len(ROWS))) == expected


BAD = [
    ("no tags at all", MALFORMED),
    ("<think>cut off", MALFORMED),
    (format_completion("fine", "no labels"), WRONG_FORM),
    (format_completion("fine", "Q: only a question"), WRONG_FORM),
    (None, NO_COMPLETION),  # the prompt did not fit: asking again would not help
]


@pytest.mark.parametrize("completion, reason", BAD)
def test_every_source_row_of_a_failed_cluster_gets_the_reason(completion, reason):
    scripted = Scripted(tides=[completion], bread=[BREAD])
    outcome = distill(dataset(), scripted, distiller_name="scripted")
    assert outcome.dropped == {"a": reason, "c": reason, "e": NO_CLUSTER}
    assert outcome.dataset["cluster_id"][:] == [1]
    tries = [record for record in outcome.completions if record["cluster_id"] == 0]
    assert [(record["attempt"], record["completion"], record["reason"]) for record in tries] == [
        (1, completion, reason),
        (2, completion, reason),
    ][: 1 if completion is None else 2]


def test_a_malformed_completion_is_asked_again_with_a_seed_of_its_own():
    scripted = Scripted(tides=["junk", "junk", TIDES], bread=["junk", "junk", BREAD])
    outcome = distill(dataset(), scripted, distiller_name="scripted", attempts=3, seed=1)
    assert len(outcome.dataset) == 2
    seeds = [seed for _, seed in scripted.asked]
    assert seeds[:2] == [None, None] and len(set(seeds[2:])) == 4
    again = Scripted(tides=["junk", "junk", TIDES], bread=["junk", "junk", BREAD])
    distill(dataset(ROWS[::-1]), again, distiller_name="scripted", attempts=3, seed=1)
    assert again.asked == scripted.asked


def words(messages):
    return sum(len(message["content"].split()) for message in messages)


def test_a_cluster_that_does_not_fit_is_split_and_a_row_that_never_fits_is_dropped():
    rows = [(f"r{i}", "tides", f"{i} " * 10, 1, 0) for i in range(5)] + [("r9", "tides", "word " * 99, 1, 0)]
    fixed = words(distillation_messages(["x"])) - 1
    scripted = Scripted(tides=[TIDES, BREAD, TIDES])
    outcome = distill(
        dataset(rows), scripted, distiller_name="s", max_prompt_tokens=fixed + 2 * 13, count_tokens=words
    )
    assert [record["sources"] for record in outcome.completions] == [["r0", "r1"], ["r2", "r3"], ["r4"]]
    assert outcome.dropped == {"r9": TOO_LONG}
    # The first and the last part gave the same pair: one row, which names the sources of both.
    assert outcome.dataset["sources"][:] == [["r0", "r1", "r4"], ["r2", "r3"]]
    placed = [source for sources in outcome.dataset["sources"] for source in sources] + list(outcome.dropped)
    assert sorted(placed) == sorted(row[0] for row in rows)


class Dying(Scripted):
    """Reports the first reply of each call, then dies."""

    def __call__(self, conversations, *, seeds=None, on_reply=None):
        super().__call__(conversations[:1], seeds=seeds and seeds[:1], on_reply=on_reply)
        raise KeyboardInterrupt


def test_a_journal_keeps_what_was_written_before_a_crash(tmp_path):
    with Journal(tmp_path / "j", {}) as journal, pytest.raises(KeyboardInterrupt):
        distill(dataset(), Dying(tides=[TIDES], bread=[BREAD]), distiller_name="s", journal=journal)
    rest = Scripted(tides=[], bread=["junk", BREAD])
    with Journal(tmp_path / "j", {}) as journal:
        outcome = distill(dataset(), rest, distiller_name="s", journal=journal)
    assert [word for word, _ in rest.asked] == ["bread", "bread"]  # the first and the second attempt
    expected = distill(dataset(), Scripted(tides=[TIDES], bread=["junk", BREAD]), distiller_name="s")
    assert outcome.dataset.to_list() == expected.dataset.to_list()
    with Journal(tmp_path / "j", {}) as journal:  # nothing is left to ask
        again = distill(dataset(), Scripted(), distiller_name="s", journal=journal)
    assert again.completions.to_list() == expected.completions.to_list()


def test_a_journal_that_holds_a_lone_surrogate_is_read(tmp_path):
    broken = TIDES.replace("Moon", "\ud83d Moon")
    with Journal(tmp_path / "j", {}) as journal:
        first = distill(dataset(), Scripted(tides=[broken], bread=[BREAD]), distiller_name="s", journal=journal)
    assert first.dropped == {"a": MALFORMED, "c": MALFORMED, "e": NO_CLUSTER}
    assert TIDES.replace("Moon", "? Moon") in first.completions["completion"]
    with Journal(tmp_path / "j", {}) as journal:
        again = distill(dataset(), Scripted(), distiller_name="s", journal=journal)
    assert again.completions.to_list() == first.completions.to_list() and len(first.completions) == 3


ANSWERS = [
    ("qa", "Q: a?\nA: b\nc", ("a?", "b\nc")),
    ("mcq", "Q: a?\nA) 1\nB) 2\nC) 3\nD) 4\nAnswer: B) 2", ("a?\nA) 1\nB) 2\nC) 3\nD) 4", "B) 2")),
    ("tfq", "Statement: a\nAnswer: True. b", ("a", "True. b")),
    ("cs", "C: a\nS: b", ("a", "b")),
    ("para", " just text ", ("asked", "just text")),  # no label: the prompt is that of the best source
]


@pytest.mark.parametrize("task_type, answer, pair", ANSWERS)
def test_answers_become_pairs(task_type, answer, pair):
    assert split_answer(answer, task_type, "asked") == pair


def test_equal_prompts_are_asked_once():
    rows = [("a", "tides", "rise", 1, 0), ("b", "tides", "rise", 1, 1)]
    scripted = Scripted(tides=[TIDES])
    outcome = distill(dataset(rows), scripted, distiller_name="s")
    assert len(scripted.asked) == 1
    assert outcome.dataset["sources"][:] == [["a", "b"]]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_rows_that_meet_again_later_are_one(monkeypatch, batch):
    words = ("tides", "bread", "moon", "tides")
    rows = [(f"{cluster}{place}", word, "x", 1, cluster) for cluster, word in enumerate(words) for place in "pq"]
    answers = {"tides": [TIDES], "bread": [BREAD], "moon": [TIDES]}
    expected = distill(dataset(rows), Scripted(**answers), distiller_name="s")
    assert expected.dataset["sources"][:] == [["0p", "0q", "2p", "2q", "3p", "3q"], ["1p", "1q"]]
    monkeypatch.setattr(distilled_rows, "BATCH", batch)
    found = distill(dataset(rows), Scripted(**answers), distiller_name="s")
    assert found.dataset.to_list() == expected.dataset.to_list()


def test_other_task_types_read_and_write_their_own_form():
    rows = [("a", "Tides", "they rise", 1, 0), ("b", "", "Tides fall too", 3, 0)]
    scripted = Scripted(Tides=[format_completion("both", "Tides rise and fall.")])
    outcome = distill(dataset(rows), scripted, distiller_name="s", task_type="para")
    assert outcome.dataset["completion"][:] == ["Tides rise and fall."]
    assert outcome.completions[0]["prompt_hash"] == prompt_hash(
        distillation_messages(["Tides\nthey rise", "Tides fall too"], "para")
    )


def test_no_rows_are_no_error():
    empty = dataset().select([])
    outcome = distill(empty, Scripted(), distiller_name="s")
    assert (len(outcome.dataset), outcome.dropped, len(outcome.completions)) == (0, {}, 0)
    assert outcome.dataset.features == DISTILLED


REFUSED = [
    ({"max_prompt_tokens": 10}, "needs count_tokens"),
    ({"attempts": 0}, "attempts=0 must be at least 1"),
    ({"task_type": "poem"}, "Unknown task type 'poem'"),
]


@pytest.mark.parametrize("arguments, message", REFUSED)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        distill(dataset(), Scripted(), distiller_name="s", **arguments)
