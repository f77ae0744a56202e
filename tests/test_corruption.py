from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.bundled import read_mini
from hf_lmmixup.corruption import (
    CORRUPTIONS,
    VAGUE_NUMBERS,
    VAGUE_TERMS,
    corrupt,
    drop_reasoning,
    merge_topics,
    names,
    truncate,
    typos,
    vague,
    weak_score,
)
from hf_lmmixup.prompts import ANSWER_LABELS
from hf_lmmixup.records import HIGH_SCORE, TaskType
from hf_lmmixup.wording import LABELS, expectation, split_form, split_sentences, terms


TIDES = (
    "Q: Why do tides occur?\nA: The Moon pulls the oceans. The near side, 384,400 km away, is pulled more strongly."
)
BREAD = "Q: Why does bread rise?\nA: Yeast makes carbon dioxide. Gluten traps it."


def parameters(name):
    return {"other": BREAD} if name == "cross-topic merging" else {}


@pytest.mark.parametrize(
    "function, arguments, expected",
    [
        # the explanation goes, the claim stays
        (drop_reasoning, {"text": TIDES}, "Q: Why do tides occur?\nA: The Moon pulls the oceans."),
        # a verdict is not the claim: one more sentence stays
        (
            drop_reasoning,
            {"text": "Statement: Ice floats.\nAnswer: True. It is less dense. Bonds hold it open."},
            "Statement: Ice floats.\nAnswer: True. It is less dense.",
        ),
        # a single sentence is cut where the reason starts
        (drop_reasoning, {"text": "S: Ice floats on water because it is less dense."}, "S: Ice floats on water."),
        # without any mark of a reason the last third goes
        (drop_reasoning, {"text": "one two three four five six"}, "one two three four"),
        # the chosen option of a multiple-choice item is no explanation
        (
            drop_reasoning,
            {"text": "Q: 2+2?\nA) 3\nB) 4\nC) 5\nD) 6\nAnswer: B) 4. Two pairs. They make four."},
            "Q: 2+2?\nA) 3\nB) 4\nC) 5\nD) 6\nAnswer: B) 4. Two pairs.",
        ),
        # two sentences kept on demand
        (drop_reasoning, {"text": "One. Two. Three.", "sentences": 2}, "One. Two."),
        # a single word cannot be cut
        (truncate, {"text": "word"}, "word"),
        # a text without words of four letters has no typo
        (typos, {"text": "a b c d"}, "a b c d"),
        # nothing specific, nothing vague
        (vague, {"text": "it is so"}, "it is so"),
        # a run of specific words becomes one empty word, and its mark stays
        (vague, {"text": "use electrical resistance.", "rate": 1.0}, "use stuff."),
    ],
)  # fmt: skip
def test_one_corruption(function, arguments, expected):
    assert function(**arguments, seed=1).replace("something", "stuff").replace("certain things", "stuff").replace(
        "that kind of thing", "stuff"
    ) == expected  # fmt: skip


@pytest.mark.parametrize(
    "text, head, body",
    [
        (TIDES, "Q: Why do tides occur?\nA: ", TIDES.partition("A: ")[2]),
        ("plain words. More.", "", "plain words. More."),
        ("C: x\nS: y", "C: x\nS: ", "y"),
        # labels inside a line are words
        ("Q: what does A: mean", "Q: ", "what does A: mean"),
        ("", "", ""),
    ],
)
def test_split_form(text, head, body):
    assert split_form(text) == (head, body)


def test_terms_leave_out_labels_and_repeats():
    assert terms(["Q: Who?\nA: Ada, in 1,843 and 1,843.", "ada again"]) == [
        "who",
        "ada",
        "in",
        "1,843",
        "and",
        "again",
    ]


@pytest.mark.parametrize("name", names())
def test_every_corruption_loses_something_of_every_target(name):
    """Each of the 225 targets changes; its labels stay, except where a truncation cuts them off."""
    targets = [cluster["target"] for cluster in read_mini()]
    for position, target in enumerate(targets):
        other = targets[(position + 7) % len(targets)]
        spoilt = corrupt(target, name, seed=position, **({"other": other} if parameters(name) else {}))
        assert spoilt != target and spoilt.strip() == spoilt
        wanted = expectation(target, spoilt)
        assert wanted.restore or wanted.drop
        assert wanted.met(target) == 1.0 and wanted.met(spoilt) == 0.0
        if name != "truncation":
            labels = [word for word in target.split() if word in LABELS]
            assert [word for word in spoilt.split() if word in LABELS] == labels


@pytest.mark.parametrize(
    "name, check",
    [
        # what stays is a prefix
        ("truncation", lambda text, spoilt: text.startswith(spoilt)),
        # same number of words, same first letters
        (
            "typos",
            lambda text, spoilt: [w[0] for w in text.split()] == [w[0] for w in spoilt.split()],
        ),
        # specific words are gone, no figure or name came in
        (
            "vague wording",
            lambda text, spoilt: (
                set(terms([text])) - set(terms([spoilt]))
                and set(terms([spoilt])) - set(terms([text])) <= set(" ".join(VAGUE_TERMS + VAGUE_NUMBERS).split())
            ),
        ),
        # a prefix, up to the final mark
        ("missing reasoning", lambda text, spoilt: text.startswith(spoilt.rstrip("."))),
        # one sentence of the other topic came in, one of this topic went
        (
            "cross-topic merging",
            lambda text, spoilt: (
                any(s[1:] in spoilt for s in split_sentences(split_form(BREAD)[1])) and text not in spoilt
            ),
        ),
    ],
)
@given(seed=st.integers(0, 2**63 - 1))
@settings(max_examples=50)
def test_what_each_corruption_keeps(name, check, seed):
    spoilt = corrupt(TIDES, name, seed=seed, **parameters(name))
    assert check(TIDES, spoilt), spoilt
    assert spoilt == corrupt(TIDES, name, seed=seed, **parameters(name))


@given(text=st.text(min_size=0, max_size=200), seed=st.integers(0, 2**32))
def test_any_text_survives(text, seed):
    for name in names():
        assert isinstance(corrupt(text, name, seed=seed, **parameters(name)), str)


def test_verdicts_and_truth_stay():
    """No seed turns "not" or "False" into something else."""
    text = "Statement: Venus is not hot.\nAnswer: False. Venus is never cold; only Mercury comes close."
    for seed, rate in product(range(50), (0.3, 1.0)):
        for spoilt in (typos(text, seed=seed, rate=rate), vague(text, seed=seed, rate=rate)):
            assert " not " in spoilt and "False." in spoilt and " never " in spoilt and " only " in spoilt


def test_rates_change_how_much_is_lost():
    targets = [cluster["target"] for cluster in read_mini("para")]

    def changed(function, rate):
        return sum(
            old != new
            for seed, target in enumerate(targets)
            for old, new in zip(target.split(), function(target, seed=seed, rate=rate).split(), strict=False)
        )

    assert changed(typos, 0.1) < changed(typos, 0.4) < changed(typos, 1.0)
    lengths = [sum(len(truncate(t, seed=0, keep=keep)) for t in targets) for keep in (0.3, 0.6, 0.9)]
    assert lengths == sorted(lengths)
    assert truncate("one two three four", seed=3, keep=0.5, side="start") == "three four"


@pytest.mark.parametrize(
    "name, scores",
    [
        # target 5, target 4, target 0
        ("typos", (3, 2, 0)),
        ("missing reasoning", (3, 2, 0)),
        ("truncation", (2, 1, 0)),
        ("cross-topic merging", (2, 1, 0)),
        ("vague wording", (1, 0, 0)),
    ],
)
def test_scores(name, scores):
    assert tuple(weak_score(target, name) for target in (5, 4, 0)) == scores
    assert max(scores) < HIGH_SCORE


def test_catalogue_is_documented():
    assert len(set(names())) == len(CORRUPTIONS) == 5
    assert all(corruption.apply.__doc__ for corruption in CORRUPTIONS)


def test_labels_are_those_of_the_answer_forms():
    assert {label.strip() for kind in TaskType for label in ANSWER_LABELS[kind]} == LABELS


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: corrupt(TIDES, "blur", seed=0), "Unknown corruption 'blur'. Expected one of"),
        (lambda: truncate(TIDES, seed=0, keep=1.0), "keep=1.0 must lie between 0 and 1"),
        (lambda: truncate(TIDES, seed=0, side="left"), "side='left' must be 'end' or 'start'"),
        (lambda: typos(TIDES, seed=0, rate=0), "rate=0 must be above 0"),
        (lambda: vague(TIDES, seed=0, rate=1.5), "rate=1.5 must be above 0 and at most 1"),
        (lambda: drop_reasoning(TIDES, seed=0, sentences=0), "sentences=0 must be 1 or more"),
        (lambda: merge_topics(TIDES, seed=0, other=" "), "needs words of another text"),
        (lambda: merge_topics(TIDES, seed=0, other=BREAD, keep=0), "keep=0 must be above 0"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
