import pytest

from hf_lmmixup.prompts import distillation_messages
from hf_lmmixup.readings import Reading, column, completion_text, read_completions, source_texts


ANSWER = "Q: What causes tides?\nA: The Moon pulls on the sea."
GOOD = f"<think>t</think>\n<answer>{ANSWER}</answer>"


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("text", "text"),
        ([{"role": "assistant", "content": "text"}], "text"),
        ([{"role": "user", "content": "no"}, {"role": "assistant", "content": "text"}], "text"),  # the last turn
        ([{"role": "assistant", "content": [{"type": "text", "text": "te"}, {"type": "text", "text": "xt"}]}], "text"),
        ({"role": "assistant", "content": "text"}, "text"),
        # As TRL hands it over where the tokenizer has a response template:
        ([{"role": "assistant", "reasoning_content": "t", "content": f"<answer>{ANSWER}</answer>"}], GOOD),
        ([{"role": "assistant", "reasoning_content": None, "content": "text"}], "text"),
        ([{"role": "assistant", "thinking": "t", "content": f"<answer>{ANSWER}</answer>"}], GOOD),
        ([{"role": "assistant", "thinking": "of its own", "content": GOOD}], GOOD),
        ([{"role": "assistant", "content": None}], ""),
        ([{"role": "assistant", "tool_calls": []}], ""),
        ([], ""),
        (None, ""),
    ],
)
def test_the_text_of_a_completion(completion, text):
    assert completion_text(completion) == text


MALFORMED = [
    "",
    ANSWER,  # no tags
    "<think></think><answer></answer>",  # empty tags
    f"<think> </think><answer>{ANSWER}</answer>",  # empty reasoning
    f"<answer>{ANSWER}</answer>",
    f"<think>t</think><ANSWER>{ANSWER}</ANSWER>",  # case counts
    f"<think>a<think>b</think></think><answer>{ANSWER}</answer>",  # nested
    f"<think>t</think><answer>{ANSWER}</answer>junk<answer>{ANSWER}</answer>",  # two answers
    f"<think>t</think>junk<answer>{ANSWER}</answer>",  # text between
    f"<answer>{ANSWER}</answer><think>t</think>",  # wrong order
    f"<think>t<answer>{ANSWER}</think></answer>",  # crossed
    f"{GOOD} and more",
    "<think>" * 50 + "</think>" * 50 + "<answer></answer>" * 50,  # tag soup
]


@pytest.mark.parametrize("completion", MALFORMED, ids=lambda text: text[:40])
def test_a_malformed_completion_has_no_answer(completion):
    assert read_completions([completion]) == [Reading(None, "malformed")]


def test_a_completion_is_read_against_its_own_columns():
    readings = read_completions([GOOD, GOOD, GOOD], [[ANSWER], None, ["Q: x\nA: y"]], [None, ANSWER, ANSWER])
    assert [reading.fault for reading in readings] == ["echo of the inputs", None, None]
    assert {reading.answer for reading in readings} == {ANSWER}


def test_a_column_of_another_length_is_named():
    assert column(None, 2, "reference") == [None, None]
    with pytest.raises(ValueError, match="The column 'sources' has 1 entries for 2 completions"):
        read_completions([GOOD, GOOD], [["a"]])


def test_sources_are_read_back_from_a_prompt():
    sources = ["Q: a\nA: b", "Q: c\nA: d"]
    messages = distillation_messages(sources, "qa")
    assert source_texts(messages) == sources
    assert source_texts(messages[-1]["content"]) == sources
    assert source_texts("one paragraph") == [] and source_texts(None) == []
