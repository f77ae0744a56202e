"""Mosaics: what is drawn, what is written, and that nothing is lost on the way."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from hf_lmmixup.mosaic import build_mosaics, mosaic, mosaic_file, read_responses
from hf_lmmixup.mosaic_config import MASKS, NUMBERS, ORDERS, STRATEGIES, MosaicConfig, item_probabilities
from hf_lmmixup.mosaic_rows import RowForm, RowReader
from hf_lmmixup.mosaic_templates import FOLDER, PLACEHOLDERS, load_templates
from hf_lmmixup.mosaic_text import Layout, answer_order
from hf_lmmixup.mosaic_tokens import TokenCounter
from hf_lmmixup.records import row_id


class Words:
    """A tokenizer for tests: one token per word and mark; counts how often it is asked for each text."""

    chat_template = "yes"

    def __init__(self):
        self.asked = Counter()

    def __call__(self, texts, add_special_tokens=True, **_):
        if isinstance(texts, str):
            return {"input_ids": self.split(texts)}
        self.asked.update(texts)
        return {"input_ids": [self.split(text) for text in texts]}

    def split(self, text):
        return "".join(c if c.isalnum() else f" {c} " if not c.isspace() else " " for c in text).split()

    def apply_chat_template(self, messages, tokenize):
        assert not tokenize
        return "".join(f"| {m['role']} |{m['content']}| end |" for m in messages)


QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
"""Where the tokenizers of these models cut a text before they merge bytes."""


class BytePairs:
    """A real byte-level BPE behind the two methods of a `transformers` tokenizer that are used."""

    chat_template = "yes"

    def __init__(self, texts, vocabulary=600, pattern=None):
        self.backend_tokenizer = Tokenizer(models.BPE())
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        cut = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, plain])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
        self.backend_tokenizer.train_from_iterator(texts, trainer)

    def __call__(self, texts, add_special_tokens=True, **_):
        if isinstance(texts, str):
            return {"input_ids": self.backend_tokenizer.encode(texts).ids}
        return {"input_ids": [self.backend_tokenizer.encode(text).ids for text in texts]}

    def apply_chat_template(self, messages, tokenize):
        return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)


def rows(n, answer="answer {i}"):
    return Dataset.from_dict(
        {
            "id": [f"r{i}" for i in range(n)],
            "prompt": [f"task {'very ' * (i % 5)}{i}" for i in range(n)],
            "completion": [answer.format(i=i) for i in range(n)],
        }
    )


def only(strategy, **settings):
    return MosaicConfig(**{"strategies": {strategy: 1.0}, "max_tokens": None, **settings})


def responses_by_hand(text, layout, order):
    """Reads the answers without the package: cuts at each mark that must come next."""
    marks = [layout["number"].replace("{n}", str(number)) + layout["open"] for number in order]
    found, rest = [], text
    for place, mark in enumerate(marks):
        assert rest.startswith(mark)
        rest = rest.removeprefix(mark)
        end = layout["close"]
        if place + 1 < len(marks):
            answer, cut, rest = rest.partition(end + layout["separator"] + marks[place + 1])
            assert cut
            rest = marks[place + 1] + rest
        else:
            answer = rest[: len(rest) - len(end)]
            assert rest.endswith(end)
        found.append(answer)
    return found


# ----------------------------------------------------------------- what is drawn


def test_probabilities_of_item_counts():
    for number, expected in {
        "uniform": [0.25, 0.25, 0.25, 0.25],
        "fixed": [0, 0, 0, 1],
        # (e^-3 - e^-4), (e^-2 - e^-3), ... over (1 - e^-4)
        "exponential": [0.032058, 0.087144, 0.236883, 0.643914],
        # 1/(1+x): 1/4-1/5, 1/3-1/4, 1/2-1/3, 1-1/2 over 1-1/5: Lomax starts at 0, so the maximum has 5/8 and not 5/6
        "pareto": [0.0625, 0.104167, 0.208333, 0.625],
        # normal table at ln 1, ln 2, ln 3, ln 4: 0.5, 0.75590, 0.86403, 0.91717
        "lognormal": [0.05794, 0.11790, 0.27901, 0.54515],
        # 1/(1+e^(-x/2)) at 0..4: 0.5, 0.62246, 0.73106, 0.81757, 0.88080
        "logistic": [0.16604, 0.22718, 0.28519, 0.32159],
    }.items():
        assert item_probabilities(number, 4) == pytest.approx(expected, abs=2e-5), number
    for number in set(NUMBERS) - {"max_length"}:
        assert item_probabilities(number, 10).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("number", "draw"),
    [
        ("exponential", lambda rng: rng.exponential()),
        ("pareto", lambda rng: rng.pareto(1)),
        ("lognormal", lambda rng: rng.lognormal()),
        ("logistic", lambda rng: rng.logistic(scale=2.0)),
    ],
)
def test_decaying_counts_are_those_of_drawing_again(number, draw):
    """The published rule, as a loop: draw a shortfall until it lies in [0, 10), take 10 minus its whole part."""
    rng = np.random.default_rng(0)
    counts = Counter()
    while counts.total() < 20_000:
        if 0 <= (shortfall := draw(rng)) < 10:
            counts[10 - int(shortfall)] += 1
    observed = np.array([counts[k] for k in range(1, 11)]) / counts.total()
    assert np.abs(observed - item_probabilities(number, 10)).max() < 0.012  # three standard deviations


@pytest.mark.parametrize("number", sorted(set(NUMBERS) - {"max_length"}))
def test_mosaics_have_the_drawn_number_of_rows(number):
    examples, report = build_mosaics(rows(6000), config=only("format", number=number, max_items=6))
    counts = Counter(len(sources) for sources in examples["sources"])
    expected = item_probabilities(number, 6)
    for items in range(1, 7):
        share = counts[items] / report.examples
        assert abs(share - expected[items - 1]) < 4 * math.sqrt(0.25 / report.examples), items


def test_strategies_have_their_shares():
    config = MosaicConfig(strategies={"primary": 1, "maskout": 3}, number="fixed", max_items=5, max_tokens=None)
    _, report = build_mosaics(rows(8000), config=config)
    assert report.strategies["maskout"] / report.examples == pytest.approx(0.75, abs=0.04)
    assert set(report.strategies) <= {"primary", "maskout", "single"}


TASKS = ["bee two", "Ant", "zoo of three words here", "ant again", "Éclair is nice"]
"""First letters b a z a e; words 2 1 5 2 3; characters 7 3 23 9 14."""


@pytest.mark.parametrize(
    ("method", "order"),
    [
        ("reverse", [5, 4, 3, 2, 1]),
        ("alphabetical", [2, 4, 1, 5, 3]),  # both a: by number; É counts as e
        ("reverse_alphabetical", [3, 5, 1, 2, 4]),  # not the mirror image: the tie stays by number
        ("fewest_words", [2, 1, 4, 5, 3]),
        ("most_words", [3, 5, 1, 4, 2]),
        ("fewest_characters", [2, 1, 4, 5, 3]),
        ("most_characters", [3, 5, 4, 1, 2]),
        ("odd_then_even", [1, 3, 5, 2, 4]),
        ("even_then_odd", [2, 4, 1, 3, 5]),
    ],
)
def test_orders(method, order):
    assert [place + 1 for place in answer_order(method, TASKS, 0.5)] == order


def test_given_order_is_a_permutation_that_depends_on_the_seed():
    orders = {tuple(answer_order("given", TASKS, seed / 50)) for seed in range(50)}
    assert len(orders) > 30 and all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert set(ORDERS) == {"given"} | {"reverse", "alphabetical", "reverse_alphabetical", "fewest_words"} | {
        "most_words", "fewest_characters", "most_characters", "odd_then_even", "even_then_odd"
    }  # fmt: skip


def test_masks():
    examples, _ = build_mosaics(rows(3000), config=only("maskout", number="fixed", max_items=5))
    words = {f"r{i}": 2 + i % 5 for i in range(3000)}
    seen = Counter()
    for row in examples.filter(lambda row: len(row["sources"]) == 5):
        lengths = [words[source] for source in row["sources"]]
        count, masked = len(row["masked"]), row["masked"]
        by_length = sorted(range(1, 6), key=lambda n: (lengths[n - 1], n))
        from_longest = sorted(range(1, 6), key=lambda n: (-lengths[n - 1], n))
        expected = {
            "odd": [1, 3, 5],
            "even": [2, 4],
            "shortest": sorted(by_length[:count]),
            "longest": sorted(from_longest[:count]),
            "given": masked,
        }[row["method"]]
        assert masked == expected and 1 <= count <= (3 if row["method"] == "odd" else 2)
        assert row["order"] == [n for n in range(1, 6) if n not in masked]
        seen[row["method"]] += 1
    assert set(seen) == set(MASKS) and min(seen.values()) > 60


# ----------------------------------------------------------------- what is written


def test_a_layout_writes_and_reads():
    layout = Layout("({n}) ", "<<", ">>", "\n\n")
    assert layout.join(["x", "", "y\n\nz"], [3, 1, 2]) == "(3) <<x>>\n\n(1) <<>>\n\n(2) <<y\n\nz>>"
    assert layout.split("(3) <<x>>\n\n(1) <<>>\n\n(2) <<y\n\nz>>", [3, 1, 2]) == ["x", "", "y\n\nz"]
    assert layout.split("(3) <<x>>\n\n(1) <<>>", [3, 2]) is None
    assert layout.write(["a >> b", "c"], [1, 2]) is None  # a mark inside an answer
    numbered = Layout("{n}. ", "", "", "\n\n")
    assert numbered.write(["one\n\n2. two", "three"], [1, 2]) is None  # looks like the next answer
    assert numbered.write(["one\n2. two", "three"], [1, 2]) == "1. one\n2. two\n\n2. three"


HOSTILE = ["1.", "2.", "\n\n", "\n", " ", "[START]", "[STOP]", "<<", ">>", "{", "}", "{n}", "=", "===", "---", "***"]
HOSTILE += [
    "«",
    "»",
    "(2)",
    "Task 2:",
    "#3",
    "<reply>",
    "</reply>",
    "x",
    "word",
    "É",
    "ß",
    "中",
    "{{",
    "}}",
    "§2",
    "|",
]
texts = st.lists(st.sampled_from(HOSTILE), max_size=8).map("".join)
hostile_rows = st.lists(st.tuples(texts, texts), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(
    pairs=[("a", "x\n\n2. y"), ("b", "{{ [START] << 1. === \n\n---\n\n")] * 5,
    strategy="primary",
    seed=0,
    number="fixed",
)
@given(
    pairs=hostile_rows, strategy=st.sampled_from(STRATEGIES), seed=st.integers(0, 99), number=st.sampled_from(NUMBERS)
)
def test_every_mosaic_holds_the_answers_it_claims(pairs, strategy, seed, number):
    config = MosaicConfig(strategies={strategy: 1.0}, number=number, max_items=6, max_tokens=400, seed=seed)
    data = Dataset.from_dict(
        {
            "id": [f"r{i}" for i in range(len(pairs))],
            "prompt": [p for p, _ in pairs],
            "completion": [c for _, c in pairs],
        }
    )
    examples, report = build_mosaics(data, Words(), config)
    answered, skipped = [], {}
    for place, row in enumerate(examples):
        sources = [row["sources"][number - 1] for number in row["order"]]
        original = [pairs[int(source[1:])][1] for source in sources]
        assert [answers for (answers,) in read_responses(row)] == original
        if len(row["sources"]) > 1:
            assert responses_by_hand(row["completion"], row["layout"], row["order"]) == original
            if row["layout"]["open"]:  # no mark occurs anywhere but around an answer
                assert row["completion"].count(row["layout"]["open"]) == len(original)
                assert row["completion"].count(row["layout"]["close"]) == len(original)
            for number, source in enumerate(row["sources"], start=1):
                numbered = row["layout"]["number"].replace("{n}", str(number))
                assert numbered + pairs[int(source[1:])][0] in row["prompt"]
            assert sorted(row["order"] + row["masked"]) == list(range(1, len(row["sources"]) + 1))
            assert row["layout"]["number"] or row["strategy"] in ("primary", "format")
        for source in sources:
            assert skipped.get(source, -1) < place  # a skipped row is answered later
        for number in row["masked"]:
            skipped[row["sources"][number - 1]] = place
        answered += sources
    assert sorted(answered) == sorted(data["id"])  # every row once
    assert report.rows == len(pairs) and report.examples == len(examples) == sum(report.strategies.values())


def test_what_an_instruction_refers_to_is_there():
    """Sentences about numbers only with numbers; sentences about marks name the marks of the answers."""
    templates = load_templates()
    about_numbers = [p for kind, ps in templates.phrases.items() if kind in ("numbered", "order_reverse") for p in ps]
    examples, _ = build_mosaics(rows(4000), config=MosaicConfig(max_tokens=None, max_items=4))
    unnumbered = 0
    for row in examples:
        if any(phrase in row["prompt"] for phrase in about_numbers) or row["strategy"] in ("permute", "maskout"):
            assert "{n}" in row["layout"]["number"]
        if row["layout"]["open"]:
            assert row["layout"]["open"].strip() in row["prompt"] and row["layout"]["close"].strip() in row["prompt"]
        unnumbered += not row["layout"]["number"] and row["strategy"] == "format"
    assert unnumbered > 5
    used = Counter(row["layout"]["open"] for row in examples if len(row["sources"]) > 1)
    assert set(used) == {"", *(opening for opening, _ in templates.wrappers)}  # each pair of marks comes up


def test_tasks_without_letters_are_not_sorted_by_them():
    data = Dataset.from_dict({"prompt": ["1+1", "2+2", "3+3"] * 200, "completion": ["2", "4", "6"] * 200})
    examples, _ = build_mosaics(data, config=only("permute", number="fixed", max_items=3))
    assert not any("alphabetical" in method for method in examples["method"])
    assert {"given", "reverse", "fewest_words"} <= set(examples["method"])


# ----------------------------------------------------------------- templates


@pytest.mark.parametrize("file", sorted(FOLDER.glob("mosaic_*.json")), ids=lambda file: file.stem)
def test_every_bundled_phrase_can_be_filled(file):
    templates = load_templates(file.stem.removeprefix("mosaic_"))
    values = {"count": 3, "sequence": "3, 1, 2", "open": "[START]", "close": "[STOP]"}
    for kind, placeholders in PLACEHOLDERS.items():
        phrasings = templates.phrases[kind]
        assert len(set(phrasings)) == len(phrasings) >= 8, kind
        for phrase in phrasings:
            filled = phrase.format(**values)
            assert filled == filled.strip() and "{" not in filled and len(filled) < 200
            assert all(str(values[name]) in filled for name in placeholders), phrase
    for opening, closing in templates.wrappers:
        assert Layout("", opening, closing, "\n\n").write(["some text", "more"], [1, 2])
    for number in templates.numbers:
        assert Layout(number, "", "", "\n\n").split(number.replace("{n}", "12") + "x", [12]) == ["x"]


def test_bundled_words_are_paired():
    for opening, closing in load_templates().wrappers:
        assert opening.count("[") == closing.count("]") or opening.count("[") == opening.count("]")
        assert opening.count("\n") == closing.count("\n")


@pytest.fixture
def german(tmp_path):
    """Another language: the bundled file with every phrase replaced."""
    content = json.loads((FOLDER / "mosaic_en.json").read_text(encoding="utf-8"))
    for kind, placeholders in PLACEHOLDERS.items():
        fields = " ".join(f"{{{name}}}" for name in sorted(placeholders))
        content["phrases"][kind] = [f"Satz {letter} über {kind} {fields}".strip() for letter in "abcdefgh"]
    path = tmp_path / "mosaic_de.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path, content


def test_another_language_is_another_file(german):
    path, _ = german
    examples, _ = build_mosaics(rows(50), config=only("permute", templates=str(path)))
    assert all("Satz" in row["prompt"] for row in examples if row["strategy"] == "permute")
    assert [len(read_responses(row)) for row in examples] == [len(row["sources"]) for row in examples]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["phrases"].pop("ties"), "'ties'"),
        (lambda c: c["phrases"].update(more=["x"]), "'more'"),
        (lambda c: c["phrases"].update(ties=["only one"] * 8), "8 different phrasings and has 1"),
        (lambda c: c["phrases"]["intro"].append("No number here."), "must use \\['count'\\]"),
        (lambda c: c["phrases"]["wrapped"].append("{open} {closed}"), "must use \\['close', 'open'\\]"),
        (lambda c: c["phrases"]["ties"].append("{broken"), "must use \\[\\]"),
        (lambda c: c["numbers"].append("no place"), "needs {n} exactly once"),
        (lambda c: c["numbers"].append("1{n}"), "needs {n} exactly once"),  # 1{n} of 1 is 11
        (lambda c: c["wrappers"].append(["#", "##"]), "none holds the other"),
        (lambda c: c["wrappers"].append(["a", " "]), "two marks"),
        (lambda c: c["wrappers"].append(["a"]), "has not the form"),
        (lambda c: c["sequences"].append("0"), "holds a digit"),
        (lambda c: c["sequences"].clear(), "must not be empty"),
        (lambda c: c.pop("numbers"), "has not the form"),
    ],
)
def test_broken_template_files_are_refused(german, change, message):
    path, content = german
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    load_templates.cache_clear()
    with pytest.raises(ValueError, match=message):
        load_templates(str(path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_template_files_of_windows_editors_are_read(german, encoding):
    path, content = german
    path.write_text(json.dumps(content), encoding=encoding)
    load_templates.cache_clear()
    assert load_templates(str(path)).numbers == tuple(content["numbers"])


def test_what_is_no_text_is_not_printed(german):
    german[0].write_bytes(b"\xff" * 9999)
    load_templates.cache_clear()
    with pytest.raises(ValueError, match=r"has not the form .{,200}$"):
        load_templates(str(german[0]))


def test_unknown_language():
    with pytest.raises(ValueError, match=r"No mosaic templates at 'xx'. Bundled: \['en'"):
        load_templates("xx")


# ----------------------------------------------------------------- the token budget


PROSE = (
    "The tide rises because the Moon pulls the oceans; its height depends on the coast, on wind and on the season. "
)


def lengthy(n, seed=0):
    rng = np.random.default_rng(seed)
    words = PROSE.split()
    draw = lambda most: " ".join(rng.choice(words, size=rng.integers(1, most)))  # noqa: E731
    return Dataset.from_dict({"prompt": [draw(30) for _ in range(n)], "completion": [draw(90) for _ in range(n)]})


@pytest.mark.parametrize("number", ["uniform", "fixed", "max_length", "pareto"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_mosaic_exceeds_the_budget(number, strategy):
    data = lengthy(300)
    tokenizer = BytePairs(data["prompt"][:] + data["completion"][:])
    count = TokenCounter(tokenizer)
    config = MosaicConfig(strategies={strategy: 1.0}, number=number, max_tokens=700, max_items=12)
    examples, report = build_mosaics(data, tokenizer, config)
    lengths = count([row["prompt"] + row["completion"] for row in examples])
    assert max(lengths) <= 699  # and the end-of-sequence token
    if number in ("max_length", "fixed"):
        joined = [length for length, row in zip(lengths, examples, strict=True) if row["strategy"] == strategy]
        assert np.mean(joined) > (420 if strategy == "maskout" else 480)  # and it is used
    assert "overlong" not in report.strategies


@pytest.mark.parametrize("turns", [1, 3])
def test_the_chat_template_counts(turns):
    data = lengthy(60 * turns)
    pairs = list(zip(data["prompt"], data["completion"], strict=True))
    messages = [
        [{"role": "system", "content": PROSE}]
        + [
            {"role": role, "content": text}
            for pair in pairs[i : i + turns]
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        for i in range(0, len(pairs), turns)
    ]
    tokenizer = BytePairs([text for pair in pairs for text in pair])
    config = MosaicConfig(number="fixed", max_tokens=900)
    examples, _ = build_mosaics(Dataset.from_dict({"messages": messages}), tokenizer, config)
    rendered = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in examples]
    assert max(TokenCounter(tokenizer)(rendered)) <= 900
    assert max(len(sources) for sources in examples["sources"]) > 1


def test_each_row_is_tokenized_once():
    tokenizer = Words()
    data = rows(120)
    build_mosaics(data, tokenizer, MosaicConfig(max_tokens=100))
    assert all(tokenizer.asked[text] == 1 for text in data["prompt"][:] + data["completion"][:])
    assert tokenizer.asked.total() < 240 + 400  # and each sentence of the templates


def test_many_rows_are_counted_by_distinct_words():
    tokenizer = Words()
    data = rows(3000)
    build_mosaics(data, tokenizer, MosaicConfig(max_tokens=100))
    # 3,000 numbers with and 3 words with or without a space, a sample of 256 texts or a little more, the templates
    assert tokenizer.asked.total() < 6000 + 600 + 400
    assert TokenCounter(tokenizer)(data["prompt"]) == [len(tokenizer.split(text)) for text in data["prompt"]]


BLANKS = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    " \n",
    "\n ",
    "\r\n",
    "   ",
    "a",
    "B",
    "the",
    "don't",
    "9",
    "2024",
    ".",
    "!?",
    "(",
    "é",
    "中",
    "_",
    "'s",
    "-",
    "\x0b",
    "\u3000",
    "\0",  # stands for a cut inside, so texts with it are counted whole
]


class WordPieces(BytePairs):
    """A real WordPiece tokenizer as BERT has it, instead."""

    def __init__(self, texts, vocabulary=500):
        self.backend_tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        self.backend_tokenizer.normalizer = normalizers.BertNormalizer()
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=["[UNK]"], show_progress=False)
        self.backend_tokenizer.train_from_iterator(texts, trainer)


@pytest.mark.parametrize("pattern", [None, QWEN, LLAMA_3, "WordPiece"])
def test_sums_over_words_are_the_tokenizers_own_counts(pattern):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(BLANKS, size=rng.integers(0, 12))) for _ in range(4000)]
    tokenizer = WordPieces(texts) if pattern == "WordPiece" else BytePairs(texts, vocabulary=500, pattern=pattern)
    counter = TokenCounter(tokenizer)
    assert counter._by_words(texts) == counter._encode(texts)
    assert counter(texts) == counter._encode(texts) and counter._separable


def test_a_tokenizer_that_looks_across_spaces_is_asked_for_whole_texts():
    whole = Tokenizer(models.BPE())  # no pre-tokenizer: merges run across spaces
    whole.train_from_iterator(["a b a b a b c"] * 50, trainers.BpeTrainer(vocab_size=40, show_progress=False))
    tokenizer = BytePairs([PROSE])
    tokenizer.backend_tokenizer = whole
    texts = [" ".join("ab"[(i >> k) & 1] for k in range(9)) for i in range(600)]
    counter = TokenCounter(tokenizer)
    assert counter(texts) == [len(whole.encode(text)) for text in texts] and counter._separable is False


def test_overlong_rows_pass_unchanged_and_are_counted():
    data = Dataset.from_dict(
        {"prompt": ["p"] * 40, "completion": ["w " * (300 if i % 20 == 7 else 3) + str(i) for i in range(40)]}
    )
    examples, report = build_mosaics(data, Words(), MosaicConfig(max_tokens=200))
    assert report.strategies["overlong"] == 2 and report.rows == 40
    whole = [row for row in examples if row["strategy"] == "overlong"]
    assert {row["completion"] for row in whole} == {data[7]["completion"], data[27]["completion"]}
    assert all(row["prompt"] == "p" and row["id"] == row_id("p", row["completion"]) for row in whole)


def test_token_counts_may_be_given():
    data = rows(200)
    column = data.add_column("length", [10] * 200)
    given, report = build_mosaics(
        data, None, MosaicConfig(number="max_length", max_tokens=500), token_counts=[10] * 200
    )
    named, _ = build_mosaics(column, None, MosaicConfig(number="max_length", max_tokens=500), token_counts="length")
    assert given.to_list() == named.to_list()
    assert 3 < report.rows / report.examples < 30
    for bad in ([1] * 199, [0.5] * 200, [-1] * 200):
        with pytest.raises(ValueError, match="token_counts must hold 200 whole numbers"):
            build_mosaics(data, None, token_counts=bad)


def test_a_budget_needs_counts():
    with pytest.raises(ValueError, match="max_tokens=2000 needs to know how long rows are"):
        build_mosaics(rows(3))


def test_a_truncating_tokenizer_is_not_trusted():
    tokenizer = BytePairs([PROSE])
    tokenizer.backend_tokenizer.enable_truncation(max_length=5)
    assert TokenCounter(tokenizer)([PROSE * 3])[0] == len(tokenizer([PROSE * 3])["input_ids"][0])


# ----------------------------------------------------------------- passes


def test_seed_and_epoch_decide_everything():
    data, tokenizer = lengthy(200), Words()
    build = lambda seed, epoch: build_mosaics(data, tokenizer, MosaicConfig(max_tokens=500, seed=seed), epoch=epoch)[0]  # noqa: E731
    before = data.to_list()
    assert build(1, 0).to_list() == build(1, 0).to_list()
    assert build(1, 2).to_list() == build(1, 2).to_list()
    distinct = [build(*pair)["id"][:] for pair in [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]]
    assert all(len(set(a) & set(b)) < len(a) / 2 for i, a in enumerate(distinct) for b in distinct[:i])
    assert data.to_list() == before  # nothing of the caller's is changed


def test_processes_do_not_change_the_result():
    data, tokenizer = lengthy(120), Words()
    alone, report = build_mosaics(data, tokenizer, MosaicConfig(max_tokens=400))
    together, same = build_mosaics(data, tokenizer, MosaicConfig(max_tokens=400), num_proc=2)
    assert alone.to_list() == together.to_list() and report == same and alone.features == together.features


def test_rows_from_disk_are_the_same(monkeypatch):
    data = lengthy(150).shuffle(seed=3)  # an indices mapping, as after a split
    held, _ = build_mosaics(data, Words(), MosaicConfig(max_tokens=400))
    monkeypatch.setattr(RowReader, "HELD_BYTES", 0)
    gathered, _ = build_mosaics(data, Words(), MosaicConfig(max_tokens=400))
    assert held.to_list() == gathered.to_list()


@pytest.mark.parametrize("strategies", [{"format": 1}, {"maskout": 1}, {"format": 1, "permute": 1, "maskout": 1}])
@pytest.mark.parametrize(
    "settings", [{"number": "uniform", "max_tokens": 450}, {"number": "max_length", "max_tokens": 900}]
)
def test_all_epochs_have_one_length_and_every_row(strategies, settings):
    data, tokenizer = lengthy(250), Words()
    lengths = set()
    for epoch in range(6):
        examples, report = build_mosaics(data, tokenizer, MosaicConfig(strategies=strategies, **settings), epoch=epoch)
        lengths.add(len(examples))
        answered = [row["sources"][n - 1] for row in examples for n in row["order"]]
        assert Counter(answered) == Counter(
            row_id(p, c) for p, c in zip(data["prompt"], data["completion"], strict=True)
        )
        assert max(TokenCounter(tokenizer)([r["prompt"] + r["completion"] for r in examples])) < settings["max_tokens"]
    assert len(lengths) == 1


@pytest.mark.parametrize(
    ("number", "seed", "words"),
    [
        ("max_length", 123, [75, 5, 85]),  # a later pass has the rows of the first one and other sentences
        ("max_length", 266, [5, 90, 70]),
        ("fixed", 126, [1, 90, 70, 60, 90, 90, 70, 60]),  # a mosaic is cut, and its second half gets sentences
        ("fixed", 118, [60, 75, 5, 80, 75, 1, 75, 80]),
    ],
)
def test_no_later_pass_exceeds_the_budget(number, seed, words):
    data = Dataset.from_dict(
        {"prompt": [f"p{i}" for i in range(len(words))], "completion": [" ".join(["w"] * count) for count in words]}
    )
    config = MosaicConfig(strategies={"format": 1.0}, number=number, max_tokens=200, seed=seed)
    for epoch in range(4):
        examples, _ = build_mosaics(data, Words(), config, epoch=epoch)
        assert max(TokenCounter(Words())([r["prompt"] + " " + r["completion"] for r in examples])) <= 199


# ----------------------------------------------------------------- forms of rows


def conversation(i, turns, system):
    said = [{"role": "system", "content": system}] if system else []
    for turn in range(turns):
        said += [{"role": "user", "content": f"u{i}.{turn}?"}, {"role": "assistant", "content": f"a{i}.{turn}!"}]
    return said


def test_conversations_keep_turns_and_system_messages():
    data = Dataset.from_dict({"messages": [conversation(i, 1 + i % 3, [None, "Be brief."][i % 2]) for i in range(90)]})
    examples, report = build_mosaics(data, Words(), MosaicConfig(max_tokens=400))
    assert examples.features["messages"] == data.features["messages"]
    again = set()
    answered = []
    for row in examples:
        roles = [message["role"] for message in row["messages"]]
        turns = sum(role == "user" for role in roles)
        assert roles == ["system"] * (roles[0] == "system") + ["user", "assistant"] * turns
        for answers in read_responses(row):
            (i,) = {int(answer[1:].split(".")[0]) for answer in answers}  # one row's answers stay together
            assert answers == tuple(f"a{i}.{turn}!" for turn in range(1 + i % 3))
            assert (roles[0] == "system") == (i % 2 == 1)
            answered.append(i)
        if len(row["sources"]) > 1 and turns > 1 and row["strategy"] != "primary":
            text = row["messages"][-2]["content"]
            again |= {phrase for phrase in load_templates().phrases["again"] if phrase in text}
            assert not any(f"u{i}." in text for i in range(90) if f"a{i}." not in row["messages"][-1]["content"])
    assert sorted(answered) == list(range(90)) and again
    assert report.strategies.keys() - {"single"} == {"format", "permute", "maskout"}


def test_prompt_and_completion_may_be_messages():
    talks = [conversation(i, 2, "S") for i in range(20)]
    data = Dataset.from_dict({"prompt": [talk[:-1] for talk in talks], "completion": [talk[-1:] for talk in talks]})
    examples, _ = build_mosaics(data, Words(), MosaicConfig(number="fixed", max_items=4, max_tokens=None))
    for row in examples:
        assert [m["role"] for m in row["prompt"]] == ["system", "user", "assistant", "user"]
        assert [m["role"] for m in row["completion"]] == ["assistant"]
        assert len(read_responses(row)) == len(row["order"])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (  # Alpaca: the input follows the instruction
            {"instruction": ["Add"], "input": ["1 and 2"], "output": ["3"]},
            {"prompt": "Add\n\n1 and 2", "completion": "3"},
        ),
        (
            {"instruction": ["Add 1 and 2"], "input": [""], "output": ["3"]},
            {"prompt": "Add 1 and 2", "completion": "3"},
        ),
        ({"instruction": ["Add 1 and 2"], "output": ["3"]}, {"prompt": "Add 1 and 2", "completion": "3"}),
        (  # ShareGPT becomes messages
            {"conversations": [[{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]]},
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        ),
        ({"prompt": [" p "], "completion": [""]}, {"prompt": " p ", "completion": ""}),  # nothing is stripped
    ],
)
def test_forms(columns, expected):
    examples, report = build_mosaics(Dataset.from_dict(columns), config=only("format"))
    assert {column: examples[0][column] for column in expected} == expected
    assert examples[0]["strategy"] == "single" and report.examples == 1


def test_conversations_of_another_shape_pass_unchanged():
    odd = [
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}],
        [{"role": "user", "content": "a"}],
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}, {"role": "assistant", "content": "c"}],
        [{"role": "user", "content": None}, {"role": "assistant", "content": "c"}],
        [],
    ]
    fine = [conversation(i, 1, None) for i in range(30)]
    examples, report = build_mosaics(Dataset.from_dict({"messages": odd + fine}), config=only("format"))
    assert report.strategies["unsupported"] == 6 and report.rows == 36
    passed = [row["messages"] for row in examples if row["strategy"] == "unsupported"]
    assert sorted(map(str, passed)) == sorted(map(str, odd))


def test_tool_calls_keep_their_columns():
    call = [
        {"role": "user", "content": "a", "tool_calls": None},
        {"role": "assistant", "content": "b", "tool_calls": "x"},
    ]
    plain = [
        {"role": "user", "content": "a", "tool_calls": None},
        {"role": "assistant", "content": "b", "tool_calls": None},
    ]
    examples, report = build_mosaics(
        Dataset.from_dict({"messages": [call, plain, plain]}), config=only("format", number="fixed")
    )
    assert report.strategies == {"format": 1, "unsupported": 1}
    assert [row["messages"] for row in examples if row["strategy"] == "unsupported"] == [call]
    tools = Dataset.from_dict({"messages": [plain, plain], "tools": [None, "[]"]})
    with pytest.raises(ValueError, match="a value in 'tools' cannot be joined"):
        build_mosaics(tools, config=only("format"))


def test_values_that_are_kept_apart():
    data = (
        rows(200)
        .add_column("language", ["de", "en"] * 100)
        .add_column("confidence", [-float(i % 50) for i in range(200)])
    )
    by_language, _ = build_mosaics(data, config=only("permute", keep_apart="language"))
    assert all({int(s[1:]) % 2 for s in row["sources"]} == {row["language"] == "en"} for row in by_language)
    by_half, _ = build_mosaics(data, config=only("maskout", keep_apart="confidence"))
    for row in by_half:
        values = [-float(int(source[1:]) % 50) for source in row["sources"]]
        assert max(values) < -24.5 or min(values) >= -24.5
        assert row["confidence"] == pytest.approx(np.mean([values[n - 1] for n in row["order"]]))


def test_ids():
    data = rows(4).remove_columns("id")
    examples, _ = build_mosaics(data, config=only("format", number="fixed", max_items=2))
    known = {row_id(p, c) for p, c in zip(data["prompt"], data["completion"], strict=True)}
    assert {source for sources in examples["sources"] for source in sources} == known
    assert examples["id"][:] == [row_id(row["prompt"], row["completion"]) for row in examples]


# ----------------------------------------------------------------- files and refusals


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_file_to_file(tmp_path, suffix):
    source, output = tmp_path / "in.jsonl", tmp_path / "out" / f"mosaics{suffix}"
    lines = [json.dumps({"instruction": f"Say {i}", "output": f"«{i}»"}) for i in range(40)] + ["broken"]
    source.write_text("\n".join(lines), encoding="utf-8")
    report, rejected = mosaic_file(source, output, config=MosaicConfig(max_tokens=None))
    assert report.rows == 40 and rejected == {"in.jsonl:41": "not valid JSON"}
    assert str(report).startswith("40 rows in ")
    if suffix == ".jsonl":
        written = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    else:
        written = Dataset.from_parquet(str(output), keep_in_memory=True).to_list()
    assert sorted(answer for row in written for (answer,) in read_responses(row)) == sorted(
        f"«{i}»" for i in range(40)
    )
    assert list(output.parent.iterdir()) == [output]
    with pytest.raises(ValueError, match=r"'.csv'. Accepted outputs: .parquet, .jsonl."):
        mosaic_file(source, tmp_path / "out.csv")


def test_the_input_is_not_written_over(tmp_path):
    source, other = tmp_path / "in.jsonl", tmp_path / "other.jsonl"
    source.write_text(json.dumps({"instruction": "Say 1", "output": "1"}))
    other.symlink_to(source)
    for output in (source, other):
        with pytest.raises(ValueError, match="is the input"):
            mosaic_file(source, output, config=MosaicConfig(max_tokens=None))
    assert json.loads(source.read_text()) == {"instruction": "Say 1", "output": "1"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategies": {"collage": 1}}, "Unknown strategy 'collage'"),
        ({"strategies": {}}, "needs weights"),
        ({"strategies": {"format": 0.0}}, "needs weights"),
        ({"strategies": {"format": -1, "primary": 2}}, "needs weights"),
        ({"strategies": {"format": math.nan}}, "needs weights"),
        ({"number": "poisson"}, "Unknown number 'poisson'"),
        ({"max_items": 0}, "max_items=0 must be 1 or more"),
        ({"max_tokens": 0}, "max_tokens=0 must be 1 or more"),
        ({"max_tokens": None, "number": "max_length"}, "fills the token budget"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        MosaicConfig(**settings)


def test_rows_are_checked():
    with pytest.raises(ValueError, match="nothing to join"):
        build_mosaics(Dataset.from_dict({"prompt": [], "completion": []}), config=only("format"))
    with pytest.raises(ValueError, match="none of the accepted forms"):
        RowForm({"text": "x"})
    with pytest.raises(ValueError, match="keep_apart='when'"):
        build_mosaics(rows(2).add_column("when", [["a"], ["b"]]), config=only("format", keep_apart="when"))
    for make, data in ((build_mosaics, rows(2)), (mosaic, rows(2).to_iterable_dataset())):
        with pytest.raises(ValueError, match="keep_apart='half' is no column of the rows; they have .'completion'"):
            make(data, config=only("format", keep_apart="half"))
        with pytest.raises(ValueError, match="token_counts='half' is no column"):
            make(data, config=only("format"), token_counts="half")


@pytest.mark.parametrize("form", ["numpy", "torch", "arrow"])
def test_the_format_of_a_dataset_does_not_matter(form):
    data, config = rows(30).add_column("confidence", [-float(i) for i in range(30)]), only("format")
    apart = only("format", keep_apart="confidence")
    for settings_ in (config, apart):
        expected, report = build_mosaics(data, config=settings_)
        examples, again = build_mosaics(data.with_format(form), config=settings_)
        assert examples.to_list() == expected.to_list() and again == report


def test_a_tampered_mosaic_is_found_out():
    examples, _ = build_mosaics(rows(10), config=only("permute", number="fixed", max_items=10))
    row = dict(examples[0])
    assert len(read_responses(row)) == 10
    with pytest.raises(ValueError, match="does not hold the answers"):
        read_responses({**row, "order": row["order"][::-1] + [11]})


def test_templates_are_part_of_the_package():
    assert FOLDER == Path(__file__).parents[1] / "hf_lmmixup" / "templates"
