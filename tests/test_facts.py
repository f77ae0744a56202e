import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lmmixup.bundled import read_mini
from hf_lmmixup.facts import coverage, extract_facts, novel_facts, novelty


NUMBERS = [
    ("It has 1,843 words.", {"1843"}),  # a comma before three digits parts thousands
    ("It costs 3,50 or 3.50.", {"3.5"}),  # any other single comma is a decimal one; trailing zeros vanish
    ("In the 1990s, on the 20th.", {"1990", "20"}),  # endings are no part of the number
    ("Twenty-five of two million", {"25", "2000000"}),  # words, hyphen, scale
    ("1.5 million and one hundred", {"1500000", "100"}),
    ("one of them", set()),  # a pronoun
    ("From 5-10 it fell to -5", {"5", "10", "-5"}),  # a range and a sign
    ("1. Stir.\n2) Bake.", set()),  # list numbers
    ("at 12:30, version 3.11.2", {"12", "30", "3.11.2"}),
    ("\uff15 or \u00b2", {"5", "2"}),  # full width and superscript
    ("10\u00b2, 3\u00bd cups, 10\u207b\u00b3", {"10", "2", "3", "1", "-3"}),  # exponents and fractions stand apart
    ("2.5kg, 12.75kg, 3.14e10", {"2.5", "12.75", "3.14"}),  # with a unit behind
    ("2024\u5e745\u6708, \u7b2c3\u7ae0", {"2024", "5", "3"}),  # between Han letters
    ("\u0663\u0664 \u0648 \u0661\u066b\u0665 \u0648 \u0967\u0968", {"34", "1.5", "12"}),  # Arabic, Devanagari
    ("two hundred and fifty rooms, one hundred twenty days", {"250", "120"}),  # with `and` and without
    ("two and three, twenty and five, two five", {"2", "3", "20", "5"}),  # these make no number together
    ("between one thousand and two thousand", {"1000", "2000"}),  # a second number of the same size
    ("one hundred and two hundred, a thousand and five hundred", {"100", "200", "1000", "500"}),
    ("one hundred and fifty thousand, twenty-five hundred", {"150000", "2500"}),
    ("two million five thousand and six", {"2005006"}),
    ("three thousand million", {"3000000000"}),
    ("two hundred, fifty of them; a hundred and one of them", {"200", "50", "101"}),  # a comma parts
    ("5 million two-bedroom flats", {"5000000", "2"}),  # words do not join figures
    ("1 000 000, 12\u00a0345, 1\u2009000.5 and -3\u202f000", {"1000000", "12345", "1000.5", "-3000"}),  # spaces
    (
        "in 2019 300 came; 5 10 200; 100 200 30; 0 500; +49 123 456",
        {"2019", "300", "5", "10", "200", "100", "30", "0", "500", "49", "123", "456"},
    ),  # not well formed
]


@pytest.mark.parametrize("text, numbers", NUMBERS)
def test_numbers(text, numbers):
    assert extract_facts(text).numbers == numbers


_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
)
_SMALL += ["seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def spelled(number, link):
    """A number below ten thousand in words; `link` stands before what is below a hundred: `one hundred and one`."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        tens, units = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_SMALL[units]}" if units else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    head, rest = divmod(number, size)
    told = f"{_SMALL[head]} {name}"
    return told if not rest else f"{told}{link if rest < 100 else ' '}{spelled(rest, link)}"


@pytest.mark.parametrize("link", [" ", " and "])
def test_every_number_that_is_spelled_out(link):
    for number in range(10_000):
        text = f"There are {spelled(number, link)} rooms."
        assert extract_facts(text).numbers == ({str(number)} if number != 1 else set()), text  # `one` is a pronoun


def test_a_number_in_words_is_supported_by_the_same_in_figures():
    assert novel_facts("It has two hundred and fifty rooms.", ["It has 250 rooms."]) == []
    assert novel_facts("For one hundred twenty days", ["It took 120 days"]) == []
    assert novel_facts("1 000 000 people", ["1,000,000 people"]) == []


NAMES = [
    ("Here Ada Lovelace wrote.", {"ada", "lovelace"}),  # capitals inside a sentence
    ("Ada Lovelace wrote.", {"ada", "lovelace"}),  # two capitals at the start
    ("Tides rise. They fall.", set()),  # a lone capital at the start is grammar
    ("Newton's law.", {"newton"}),  # unless a genitive tells
    ("water is H2O, salt NaCl, plants make ATP", {"h2o", "nacl", "atp"}),
    ("the U.S. is large", {"u.s"}),
    ("Q: Who?\nA: I know", set()),  # labels and pronouns
    ("A) Mars\nB) Io", set()),  # options open a line
]


@pytest.mark.parametrize("text, names", NAMES)
def test_names(text, names):
    assert extract_facts(text).names == names


def test_code_is_what_stands_in_backticks_and_what_looks_like_code():
    assert extract_facts("Call `df.merge` or read_csv, then print(x).").code == {"df", "merge", "read_csv", "print"}
    assert extract_facts("A stray ` opens nothing here").code == set()
    assert extract_facts("```\nx_y = open\n``` and prose").code == {"x_y", "open"}


def test_latin_names_between_han_letters_are_names():
    told = "\u4f7f\u7528Python\u7f16\u7a0b"
    assert extract_facts(told).names == {"python"}
    assert novel_facts(told, ["\u4f7f\u7528Java\u7f16\u7a0b"]) == ["python"]


def test_scripts_without_spaces_are_read_by_pairs():
    assert extract_facts("水は青い。").words == {"水は", "は青", "青い"}


RATES = [
    ("The Moon, 1969.", ["A: moon landing 1969"], 0.0),  # case and place of a name do not matter
    ("In 1970 the Moon", ["A: moon landing 1969"], 0.5),  # a wrong year
    ("nothing to check", ["A: moon landing 1969"], None),  # no hard fact
    ("Call run_it with 2", [], 1.0),  # no source supports anything
]


@pytest.mark.parametrize("answer, sources, expected", RATES)
def test_novelty(answer, sources, expected):
    assert novelty(answer, sources) == expected


def test_novel_facts_are_named():
    assert novel_facts("Einstein, by Einstein in 1905 and 1915", ["relativity, 1915"]) == ["1905", "einstein"]


def test_coverage_is_none_without_facts_and_one_for_a_copy():
    sources = ["Q: tides?\nA: the Moon, twice a day", "Q: tides\nA: about 12 hours"]
    assert coverage("anything", ["of the", ""]) is None
    assert coverage("\n".join(sources), sources) == 1.0
    assert coverage("", sources) == 0.0


def test_every_reference_of_the_mini_is_faithful_and_half_of_it_covers_less():
    for row in read_mini():
        sources = [weak["text"] for weak in row["weak"]]
        assert novelty(row["target"], sources) in (0.0, None)
        assert coverage(row["target"], sources) > coverage(row["target"][: len(row["target"]) // 2], sources)


@given(st.lists(st.text(max_size=60), max_size=4))
def test_a_copy_invents_nothing_and_keeps_everything(sources):
    # Blank lines keep one source from reading on into the next.
    copy = "\n\n".join(source.replace("`", "") for source in sources)
    assert novelty(copy, [copy]) in (0.0, None)
    assert coverage(copy, [copy]) in (1.0, None)


@pytest.mark.parametrize("unit", ["trillion ", "thousand hundred ", "hundred ", "one million and "])
def test_a_megabyte_of_scales_is_read(unit):
    assert all(len(number) < 60 for number in extract_facts(unit * (1_000_000 // len(unit))).numbers)


@pytest.mark.parametrize(
    "unit",
    [
        "a-",
        "1,",
        "`a``",
        "Ab ",
        "one million ",
        "two hundred and five ",
        "hundred and ",
        "111 ",
        "1 000 ",
        "'",
        "9",
        "é́",
        "水",
    ],
)
def test_time_grows_linearly(unit):
    def seconds(repeats):
        text = unit * repeats
        started = time.perf_counter()
        extract_facts(text)
        return time.perf_counter() - started

    seconds(10)
    small = min(seconds(4_000) for _ in range(3))
    assert min(seconds(32_000) for _ in range(2)) < max(0.05, 8 * small * 4)  # 64 x would be quadratic
