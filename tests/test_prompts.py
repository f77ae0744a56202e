"""The prompt form and the strict parsers of what comes back."""

import hashlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lmmixup.bundled import mini_clusters
from hf_lmmixup.mixture_rows import grpo_row, sft_row
from hf_lmmixup.prompts import (
    SYSTEM_PROMPT,
    answer_matches,
    distillation_messages,
    format_completion,
    parse_completion,
    prompt_hash,
    split_pair,
)
from hf_lmmixup.records import Distillation, TaskType


WELL_FORMED = "<think>r</think>\n<answer>a</answer>"

COMPLETIONS = [
    (WELL_FORMED, True),
    ("  <think>r</think><answer>a</answer>\n", True),  # white space around is no text
    ("<think></think><answer>a</answer>", False),  # no reasoning
    ("<think>r</think><answer> </answer>", False),  # no answer
    ("<answer>a</answer>", False),
    ("<think>r</think>", False),
    ("x" + WELL_FORMED, False),  # text before
    (WELL_FORMED + "x", False),  # text after
    ("<think>r</think> so <answer>a</answer>", False),  # text between
    (WELL_FORMED + WELL_FORMED, False),
    ("<think>r</think><answer>a</answer><answer>b</answer>", False),
    ("<think>r<think>s</think></think><answer>a</answer>", False),  # nested
    ("<think><answer>a</answer></think>", False),
    ("<answer>a</answer><think>r</think>", False),  # wrong order
    ("<THINK>r</THINK><ANSWER>a</ANSWER>", False),  # case-exact
    ("<think>r</think><\uff41nswer>a</answer>", False),  # look-alike letter
    ("", False),
]


@pytest.mark.parametrize(("text", "good"), COMPLETIONS)
def test_parse_completion(text, good):
    assert parse_completion(text) == (Distillation("r", "a") if good else None)


ANSWERS = [
    ("qa", "Q: x?\nA: y.", True),
    ("qa", "Q: x?\nwith a second line\nA: y.\n\nAnd a paragraph.", True),
    ("qa", "Q: x? A: y.", False),  # the second label does not open a line
    ("qa", "Q:A:", False),
    ("qa", "Q:\nA:", False),  # labels without words
    ("qa", "Q: ?\nA: !", False),
    ("qa", "A: y\nQ: x", False),
    ("qa", "Q: x\nA: y\nQ: z\nA: w", False),  # two pairs are not one
    ("qa", "so Q: x\nA: y", False),
    ("mcq", "Q: x\nA) 1\nB) 2\nC) 3\nD) 4\nAnswer: B) 2. Because.", True),
    ("mcq", "Q: x\nA) 1\nB) 2\nC) 3\nAnswer: B", False),
    ("mcq", "Q: x\nB) 1\nA) 2\nC) 3\nD) 4\nAnswer: B", False),
    ("mcq", "Q: x\nA)\nB)\nC)\nD)\nAnswer:", False),
    ("tfq", "Statement: x\nAnswer: True. y", True),
    ("tfq", "Answer: True", False),
    ("cs", "C: x\nS: y", True),
    ("cs", "C: x", False),
    ("para", "Plain prose.", True),
    ("para", "Q: x\nA: y", False),
    ("para", "  ", False),
]


@pytest.mark.parametrize(("kind", "answer", "good"), ANSWERS)
def test_answer_matches(kind, answer, good):
    assert answer_matches(answer, kind) is good


def test_every_target_of_the_mini_has_its_form():
    for cluster in mini_clusters():
        assert answer_matches(cluster["target"], cluster["task_type"]), cluster["target"]
        text = format_completion(cluster["reasoning"], cluster["target"])
        assert parse_completion(text) == Distillation(cluster["reasoning"], cluster["target"])


def test_prompt_names_form_and_members():
    system, user = distillation_messages(["Q: a\nA: b", "Q: c\nA: d"], "qa")
    assert system == {"role": "system", "content": SYSTEM_PROMPT}
    assert user["content"].startswith("Q: a\nA: b\n\nQ: c\nA: d\n\nMerge the question-answer pairs above")
    assert user["content"].endswith("</think>\n<answer>Q: question\nA: answer</answer>")
    assert len({distillation_messages(["x"], kind)[1]["content"] for kind in TaskType}) == len(TaskType)


def test_cold_start_and_grpo_ask_in_the_words_of_distillation():
    """The published code has one form for the cold start and another, with escapes for line breaks, for GRPO."""
    for cluster in mini_clusters():
        sources = [weak["text"] for weak in cluster["weak"]]
        made = {**cluster, "id": "x", "source": "y", "sources": sources}
        expected = distillation_messages(sources, cluster["task_type"])
        assert sft_row(made)["prompt"] == grpo_row(made)["prompt"] == expected
        assert [message["role"] for message in expected] == ["system", "user"]
        assert not any("\\n" in message["content"] for message in expected)


@pytest.mark.parametrize("kind", list(TaskType))
def test_skeleton_in_the_prompt_is_itself_well_formed(kind):
    _, user = distillation_messages(["x"], kind)
    skeleton = parse_completion(user["content"][user["content"].index("<think>") :])
    assert skeleton is not None
    assert answer_matches(skeleton.answer, kind)


def test_empty_cluster_and_unknown_type_are_refused():
    with pytest.raises(ValueError, match="empty"):
        distillation_messages([], "qa")
    with pytest.raises(ValueError, match="essay"):
        distillation_messages(["x"], "essay")


@given(
    st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": st.text()}), min_size=1)
)
def test_prompt_hash_is_that_of_the_json(messages):
    as_json = json.dumps(messages, sort_keys=True).encode()
    assert prompt_hash(messages) == hashlib.sha256(as_json).hexdigest()[:16]


def test_prompt_hash_depends_on_every_message():
    messages = distillation_messages(["x"], "qa")
    assert prompt_hash(messages) == prompt_hash([dict(message) for message in messages])
    assert prompt_hash(messages) != prompt_hash(messages[1:])


@pytest.mark.parametrize(
    ("answer", "pair"),
    [("Q: a\nA: b", ("a", "b")), (" Q: a\nA: b ", ("a", "b")), ("Q: a", None), ("b", None), ("Q:\nA: b", None)],
)
def test_split_pair(answer, pair):
    assert split_pair(answer) == pair


TAGS = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "Q:", "\nA:", "\nAnswer:", "a", " ", "\n"])


@given(st.lists(TAGS, max_size=30).map("".join))
def test_parsers_never_raise_and_agree_with_a_plain_reading(text):
    parsed = parse_completion(text)
    if parsed is not None:
        assert "<answer>" not in parsed.reasoning
        assert parsed.reasoning and parsed.answer
        assert format_completion(parsed.reasoning, parsed.answer) == "".join(
            ["<think>", parsed.reasoning, "</think>\n<answer>", parsed.answer, "</answer>"]
        )
    for kind in TaskType:
        assert answer_matches(text, kind) in (True, False)


@pytest.mark.parametrize("unit", ["<think>", "<answer></answer>", "Q:\nA:", "\nA) ", "x", "\n"])
def test_a_megabyte_is_read_in_linear_time(unit):
    text = unit * (1_000_000 // len(unit))
    started = time.perf_counter()
    parse_completion(text)
    parse_completion(f"<think>{text}</think><answer>{text}</answer>")
    for kind in TaskType:
        answer_matches(text, kind)
    # A generous bound for a loaded machine: a backtracking pattern would take minutes.
    assert time.perf_counter() - started < 2
