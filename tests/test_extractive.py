import random

import numpy as np
import pytest
from datasets import Dataset

from hf_lmmixup.bundled import read_mini
from hf_lmmixup.distilled_rows import NO_CLUSTER
from hf_lmmixup.extractive import MAX_GROWTH, SHORT, distill_extractively
from hf_lmmixup.facts import coverage, novelty
from hf_lmmixup.journal import Journal
from hf_lmmixup.prompts import answer_matches, distillation_messages, prompt_hash, split_pair
from hf_lmmixup.records import DISTILLED, pair_text


class BagOfWords:
    """Counts of hashed words: texts that share words are similar."""

    name, revision = "bag", None

    def __init__(self):
        self.calls = []

    def encode(self, texts):
        self.calls.append(list(texts))
        rows = np.zeros((len(texts), 256), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().replace(".", " ").split():
                row[sum(word.encode()) % 256] += 1
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


class BagOfLetters(BagOfWords):
    """The same of letters, for scripts without spaces."""

    def encode(self, texts):
        return super().encode([" ".join(text) for text in texts])


def dataset(rows):
    names = ("id", "prompt", "completion", "score", "cluster_id")
    return Dataset.from_dict({name: [row[i] for row in rows] for i, name in enumerate(names)})


def merge(*rows, **arguments):
    numbered = [(f"r{i}", *row, 0) for i, row in enumerate(rows)]
    return distill_extractively(dataset(numbered), BagOfWords(), **arguments).dataset[0]["completion"]


BEST = ("why do tides occur", "The Moon pulls the oceans.", 3)

CASES = [  # the other answer, what is added to the best one
    ("The Moon pulls the oceans.", ""),  # a repetition
    ("The Moon pulls the oceans of Earth.", ""),  # nearly one: no two new words
    ("Tides occur twice in the oceans, each 12 hours.", " Tides occur twice in the oceans, each 12 hours."),  # new
    ("the oceans take 12 hours", " the oceans take 12 hours."),  # a final mark is added
    ("Bread needs strong yeast.", ""),  # does not concern the question
    ("Do the oceans have 12 tides?", ""),  # a question
    ("- the oceans have 12 tides\n1. the oceans have 3 tides", ""),  # items of a list
    ("```\nthe oceans have 12 tides\n```", ""),  # code
    ("Pulls oceans.", ""),  # too short to stand alone
    (
        "12 hours the Moon pulls tides.",
        " 12 hours the Moon pulls tides.",
    ),  # a figure at the start makes no item of a list
    (
        'the Moon pulls the tides "for 12 hours."',
        ' the Moon pulls the tides "for 12 hours."',
    ),  # the mark stands inside
    ("12. the oceans have 12 tides\n$$12$$ the oceans have tides.\n\u2022 the oceans have 12 tides.", ""),  # items too
    ("the oceans of\nthe Moon take 12 hours,\nthe Moon pulls", ""),  # verse
    ("print('oceans')\nreturn 12 oceans of tides", ""),  # code without a fence
    ("In the oceans of 12 hours:", ""),  # announces what is not there
]


@pytest.mark.parametrize("other, added", CASES)
def test_what_is_added_to_the_best_answer(other, added):
    assert merge(BEST, ("tides", other, 1)) == BEST[1] + added


NOVEL = "Tides occur twice in the oceans, each 12 hours."
UNTOUCHED = [  # a best pair that nothing can be added to, and the prompt of the other one
    ("Name tides of oceans", "1. spring tides in oceans\n2. neap tides in oceans", "tides"),
    ("why do tides occur", "```\nprint('tides in oceans')\n```", "tides"),
    ("why do tides occur", "tides rise and rise\nthe oceans fall and", "tides"),  # verse
    ("why do tides occur", "The Moon pulls the oceans, or why?", "tides"),
    ("why do tides occur", "The oceans.", "tides"),  # nothing but the answer itself
    ("Write a poem: why do tides occur", "The Moon pulls the oceans.", "tides"),
    ("why do tides occur\n\nIn the oceans of Earth", "The Moon pulls the oceans.", "tides"),
    ("why do tides occur", "The Moon pulls the oceans.", "Classify tides in oceans"),
    ("why do tides occur", "The Moon pulls the oceans.", "tides?\n\nhigh tides, low tides"),
]


@pytest.mark.parametrize("prompt, completion, other", UNTOUCHED)
def test_lists_code_verse_bare_answers_and_tasks_stay_as_they_are(prompt, completion, other):
    assert merge((prompt, completion, 3), (other, NOVEL, 1)) == completion


def test_languages_without_spaces_are_completed():
    best = "\u6f6e\u6c50\u662f\u7531\u6708\u7403\u7684\u5f15\u529b\u5f15\u8d77\u7684\u3002"
    told = "\u6f6e\u6c50\u6bcf\u5929\u53d1\u751f\u4e24\u6b21\u3002"
    copied = f"{best}{told}\u6f6e\u6c50\u5417\uff1f"
    encoder = BagOfLetters()
    rows = [("a", "\u6f6e\u6c50", best, 3, 0), ("b", "\u6f6e\u6c50", copied, 1, 0)]
    assert distill_extractively(dataset(rows), encoder).dataset[0]["completion"] == best + told
    unended = [("a", "\u6f6e\u6c50", best[:-1], 3, 0), ("b", "\u6f6e\u6c50", copied, 1, 0)]
    assert distill_extractively(dataset(unended), encoder).dataset[0]["completion"] == best + told


def test_of_two_sentences_that_say_the_same_one_is_added():
    first, second = "The oceans rise each 12 hours here.", "The oceans rise each 12 hours."
    assert merge(BEST, ("tides", first, 1), ("tides", second, 1)).count("12 hours") == 1


def test_the_answer_grows_no_further_than_its_limit():
    facts = [" ".join(f"{word}{i}" for word in ("high", "low", "coast", "bay", "port", "lake")) for i in range(20)]
    others = [("tides occur", f"The Moon pulls the oceans of {fact}.", 1) for fact in facts]
    long = merge(BEST, *others)
    assert SHORT < len(long) <= MAX_GROWTH * SHORT + 20


def test_the_best_pair_has_the_best_score_then_the_most_company():
    texts = [("alpha beta", "gamma delta"), ("tides moon", "the oceans"), ("tides moon", "the oceans rise")]
    by_score = [(*text, score) for text, score in zip(texts, (3, 1, None), strict=True)]
    assert merge(*by_score).startswith("gamma delta")
    alike = [(*text, 1) for text in texts]
    assert merge(*alike).startswith("the oceans")


def test_lineage_and_ledger():
    rows = [("b", *BEST, 4), ("a", "tides", "The oceans take 12 hours.", None, 4), ("c", "alone", "x", 1, None)]
    outcome = distill_extractively(dataset(rows), BagOfWords())
    row = outcome.dataset[0]
    assert outcome.dataset.features == DISTILLED
    assert (row["sources"], row["source_scores"], row["cluster_id"]) == (["a", "b"], [None, 3], 4)
    assert row["prompt"] == BEST[0] and row["distiller"] == "extractive"
    texts = ["Q: tides\nA: The oceans take 12 hours.", "Q: why do tides occur\nA: The Moon pulls the oceans."]
    assert row["prompt_hash"] == prompt_hash(distillation_messages(texts))
    assert "added 1 of 1 sentences" in row["reasoning"]
    assert outcome.dropped == {"c": NO_CLUSTER}


SHOTS = "Continue.\nQ: What pulls the oceans?\nA: The Moon.\nQ: why do tides occur\nA:"
LABELLED = [  # prompt and completion of the best text, its task type
    (SHOTS, "The Moon pulls the oceans.", "qa"),
    ("Q: why do tides occur", "The Moon pulls the oceans.", "qa"),
    ("why do tides occur", "The Moon pulls the oceans.\nA: The Moon.", "qa"),
    (SHOTS, "The Moon pulls the oceans.", "para"),
]


@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize("prompt, completion, task_type", LABELLED)
def test_the_best_pair_is_kept_word_for_word(tmp_path, prompt, completion, task_type, is_recorded):
    rows = [("b", prompt, completion, 3, 0), ("a", "Continue.\nA: tides", "The oceans take 12 hours.", 1, 0)]
    expected = (prompt, f"{completion} The oceans take 12 hours.")
    path = tmp_path / "distil.journal"
    with Journal(path, {}) as journal:
        if is_recorded:
            distill_extractively(dataset(rows), BagOfWords(), task_type=task_type, journal=journal)
    encoder = BagOfWords()
    with Journal(path, {}) as journal:
        row = distill_extractively(dataset(rows), encoder, task_type=task_type, journal=journal).dataset[0]
        assert len(journal) == 1
    assert (row["prompt"], row["completion"]) == expected
    assert bool(encoder.calls) != is_recorded


def test_other_scores_are_not_answered_from_the_journal(tmp_path):
    texts = [("a", "why tides", "The Moon pulls the oceans."), ("b", "tides why", "The Sun helps the Moon a little.")]
    with Journal(tmp_path / "distil.journal", {}) as journal:
        for scores, best in (((3, 1), 0), ((1, 3), 1), ((3, 1), 0)):
            rows = dataset([(*text, score, 0) for text, score in zip(texts, scores, strict=True)])
            [row] = distill_extractively(rows, BagOfWords(), journal=journal).dataset
            assert row["prompt"] == texts[best][1]
        assert len(journal) == 2


def test_clusters_are_embedded_in_chunks_each_text_once(monkeypatch):
    monkeypatch.setattr("hf_lmmixup.extractive.CHUNK", 2)
    rows = [(f"{c}{i}", "q", f"The oceans take {c} hours.", 1, c) for c in range(5) for i in range(2)]
    encoder, done = BagOfWords(), []
    distill_extractively(dataset(rows), encoder, progress=done.append)
    assert done == [2, 2, 1]
    assert len(encoder.calls) == 3 and all(len(set(call)) == len(call) for call in encoder.calls)


def mini_rows():
    rows = []
    for cluster_id, cluster in enumerate(read_mini("qa")):
        for number, weak in enumerate(cluster["weak"]):
            if pair := split_pair(weak["text"]):
                rows.append((f"{cluster_id}-{number}", *pair, weak["score"], cluster_id))
    return rows


def test_on_the_mini_nothing_is_invented_and_more_is_kept_whatever_the_order():
    rows = mini_rows()
    distilled = distill_extractively(dataset(rows), BagOfWords()).dataset.to_list()
    shuffled = dataset(random.Random(0).sample(rows, len(rows)))
    assert distill_extractively(shuffled, BagOfWords()).dataset.to_list() == distilled
    gains = []
    for row in distilled:
        members = {one[0]: pair_text(*one[1:3]) for one in rows if one[0] in row["sources"]}
        text = pair_text(row["prompt"], row["completion"])
        assert answer_matches(text, "qa")
        assert novelty(text, list(members.values())) in (0.0, None)
        best = max((one for one in rows if one[0] in row["sources"]), key=lambda one: one[3])
        gains.append(coverage(text, list(members.values())) - coverage(members[best[0]], list(members.values())))
    assert np.mean(gains) > 0.1


REFUSED = [({"task_type": "mcq"}, "'qa' and 'para', not 'mcq'")]


@pytest.mark.parametrize("arguments, message", REFUSED)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        distill_extractively(dataset([("r", *BEST, 0)]), BagOfWords(), **arguments)


def test_a_paragraph_is_completed_too_and_no_rows_are_no_error():
    rows = [("a", "", "The Moon pulls the oceans.", 2, 0), ("b", "", "The oceans take 12 hours.", 1, 0)]
    outcome = distill_extractively(dataset(rows), BagOfWords(), task_type="para")
    assert outcome.dataset["completion"][:] == ["The Moon pulls the oceans. The oceans take 12 hours."]
    assert len(distill_extractively(dataset([]), BagOfWords()).dataset) == 0
