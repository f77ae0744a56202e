import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.rating_prompt import FOUR_AXES, KINDS, ONE_DIGIT, RATING_SCHEMA, fence, parse_rating
from hf_lmmixup.records import RATING_AXES, Rating, TaskType


GOOD = '{"rarity": 2, "complexity": 3, "informativeness": 4, "overall": 5}'

NASTY = st.text() | st.lists(
    st.sampled_from(["<sample", "</sample-", ">", "\\u003c", "9f86d081884c7d65", '"', "\n", "ignore", "\ud800"])
).map("".join)


@settings(deadline=None, max_examples=50)
@given(NASTY)
def test_no_text_can_close_its_fence(text):
    fenced, tag = fence(text)
    opening, encoded, closing = fenced.split("\n")
    fenced.encode()  # can be sent
    assert (opening, closing) == (f"<{tag}>", f"</{tag}>")
    assert "<" not in encoded and ">" not in encoded and tag.removeprefix("sample-") not in encoded
    assert json.loads(encoded) == text


@settings(deadline=None, max_examples=50)
@given(NASTY)
def test_outside_the_fence_only_the_tags_name_depends_on_the_text(text):
    def skeleton(text):
        fenced, tag = fence(text)
        return [
            (message["role"], message["content"].replace(fenced, "FENCED").replace(tag, "TAG"))
            for message in FOUR_AXES.messages(text)
        ]

    assert skeleton(text) == skeleton("harmless")


def test_the_help_of_rate_shows_the_rubric_by_its_name():
    assert repr(FOUR_AXES) == "Rubric(name='four-axes')"  # a thousand letters and an address of memory otherwise


def test_texts_of_all_languages_are_shown_as_they_are():
    assert fence("潮汐 & Mond <b>")[0].split("\n")[1] == '"潮汐 & Mond \\u003cb\\u003e"'


def test_a_nonce_that_the_text_guessed_is_replaced():
    text = "x"
    for _ in range(3):  # a text that quotes the nonce gets another one, which it cannot quote as well
        nonce = fence(text)[1].removeprefix("sample-")
        assert nonce not in text
        text += nonce


@pytest.mark.parametrize("task_type", list(TaskType))
@pytest.mark.parametrize("rubric", [FOUR_AXES, ONE_DIGIT])
def test_every_task_type_is_named_and_the_beginning_is_shared(rubric, task_type):
    first, second = rubric.messages("one", task_type), rubric.messages("two", task_type)
    assert KINDS[task_type] in first[0]["content"] and KINDS[task_type] in first[1]["content"]
    assert first[0] == second[0]
    assert first[1]["content"].split("<")[0] == second[1]["content"].split("<")[0]


def test_an_unknown_task_type_is_refused():
    with pytest.raises(ValueError, match="Unknown task type 'poem'"):
        FOUR_AXES.messages("x", "poem")


def test_the_settings_name_the_rubric_and_follow_its_words():
    assert FOUR_AXES.settings["rubric"] == "four-axes"
    assert FOUR_AXES.settings["rubric_hash"] != ONE_DIGIT.settings["rubric_hash"]


def test_the_schema_is_the_rating():
    assert RATING_SCHEMA["required"] == list(RATING_SCHEMA["properties"]) == list(RATING_AXES)
    assert json.loads(FOUR_AXES.form.partition("form: ")[2]).keys() == set(RATING_AXES)


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        f"  \n{GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```",
        f'<think>All 10? {{"overall": 10}} No.</think>\n{GOOD}',
        f"<think></think>```json{GOOD}```",
        f"All fine, or not?\n</think>\n\n{GOOD}",  # the template of Qwen3-Thinking ends with the opening tag
        '{"overall": 5, "rarity": 2, "informativeness": 4, "complexity": 3}',  # any order
    ],
)
def test_a_rating_is_read(reply):
    assert parse_rating(reply) == Rating(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "not JSON"),
        ("seven", "not JSON"),
        (f"Sure! {GOOD}", "not JSON"),
        (f"{GOOD} {GOOD}", "not JSON"),
        (f"<think>{GOOD}", "not JSON"),  # reasoning that never ends holds no answer
        (f"{GOOD}</think>", "not JSON"),
        (f"a</think>{GOOD}</think>{GOOD}", "not JSON"),
        (f"```{GOOD}", "not JSON"),
        (GOOD[:-1], "not JSON"),
        (GOOD.replace("5", "NaN"), "not JSON"),
        (GOOD.replace("5", "Infinity"), "not JSON"),
        (GOOD.replace("5", "1e400"), "not an integer"),
        (GOOD.replace("5", '5, "overall": 9'), "not JSON"),  # a key twice
        (f"[{GOOD}]", "not a JSON object"),
        ("5", "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"overall": 5}', "other keys"),
        (GOOD.replace("}", ', "why": 1}'), "other keys"),
        (GOOD.replace("overall", "Overall"), "other keys"),
        (GOOD.replace("5", '"5"'), "not an integer"),
        (GOOD.replace("5", "5.0"), "not an integer"),
        (GOOD.replace("5", "true"), "not an integer"),
        (GOOD.replace("5", "null"), "not an integer"),
        (GOOD.replace("5", "[5]"), "not an integer"),
        (GOOD.replace("5", "0"), "outside 1 to 10"),
        (GOOD.replace("5", "11"), "outside 1 to 10"),
        (GOOD.replace("5", "-3"), "outside 1 to 10"),
        ("[" * 100_000, "not JSON"),
        ("{" * 20_000, "not JSON"),
        ('{"overall": ' * 5_000, "not JSON"),
        ("9" * 10_000, "not JSON"),  # more digits than Python turns into a number
    ],
)
def test_what_is_no_rating_is_refused_with_its_reason(reply, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        parse_rating(reply)
    assert len(str(caught.value)) < 100  # the reply is not repeated


@settings(deadline=None, max_examples=50)
@given(
    st.text()
    | st.recursive(st.none() | st.integers() | st.floats() | st.booleans() | st.text(), st.lists).map(json.dumps)
)
def test_any_reply_is_a_rating_or_a_reason(reply):
    try:
        rating = parse_rating(reply)
    except ValueError as reason:
        assert str(reason)
    else:
        assert isinstance(rating, Rating)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 10), min_size=4, max_size=4))
def test_every_rating_comes_back(values):
    rating = dict(zip(RATING_AXES, values, strict=True))
    assert FOUR_AXES.read(json.dumps(rating)) == rating


@pytest.mark.parametrize("piece", ["{", "[", "<think>", "```", '{"a":', "\\", '"', " "])
def test_reading_a_megabyte_takes_milliseconds(piece):
    begun = time.process_time()
    with pytest.raises(ValueError, match="reply"):
        parse_rating(piece * (1_000_000 // len(piece)))
    assert time.process_time() - begun < 0.3
