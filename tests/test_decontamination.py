import gzip
import json
import logging
import re
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.decontamination import Contact, decontaminate, embedding_contacts, ngram_contacts
from hf_lmmixup.evaluation_sets import local_evaluations, read_evaluations


NATALIA = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."  # 20 words
CAPITAL = "What is the capital of France?"  # 6 words


def rows(texts):
    return Dataset.from_dict(
        {"id": [chr(97 + i) for i in range(len(texts))], "prompt": texts, "completion": ["c"] * len(texts)}
    )


@pytest.mark.parametrize(
    ("text", "overlap"),
    [
        # the whole question, in other case and punctuation
        (
            "Hi. natalia SOLD clips; to 48 of her friends in april and then she sold half as many clips in may! Why?",
            1.0,
        ),
        # its first 14 of 20 words: 7 of its 13 8-grams
        ("Natalia sold clips to 48 of her friends in April, and then she cried", 6 / 13),
        ("Natalia sold clips to 48 of her friends in April, and then she sold nothing", 7 / 13),
        # one word changed in the middle breaks the eight n-grams around it
        (NATALIA.replace("in April", "in June"), 5 / 13),
        # a repeated half is still one half
        ("Natalia sold clips to 48 of her friends. Natalia sold clips to 48 of her friends.", 1 / 13),
        # a text shorter than an n-gram is found whole, inside a longer row
        ("Tell me: what is the capital of France, please", 1.0),
        ("What is the capital of Spain?", None),
        # the n-gram may not run from one row into the next
        ("What is the capital", None),
        ("", None),
    ],
)
def test_ngrams(text, overlap):
    evaluations = {"gsm8k": [NATALIA], "trivia": [CAPITAL]}
    data = rows([text, "of France?"])
    found = ngram_contacts(data, evaluations, min_overlap=0.01)
    assert {identifier: round(contact.overlap, 6) for identifier, contact in found.items()} == (
        {} if overlap is None else {"a": round(overlap, 6)}
    )
    dropped = decontaminate(data, evaluations).dropped
    assert (list(dropped) == ["a"]) == (overlap is not None and overlap >= 0.5)


APPLES = "小明有三个苹果，妈妈又给了他五个苹果，请问小明现在一共有多少个苹果？"
BOOKS = "太郎は本屋で本を三冊買いました。一冊五百円です。全部でいくらですか。"
CAFE = "À quelle heure ouvre le café préféré des étudiants près de l’université où étudie Zoé ?"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"请回答：{APPLES}谢谢。", APPLES),
        (APPLES.replace("小明", "小红"), APPLES),  # another name leaves most of the 8-grams
        ("小明喜欢苹果。", None),
        (f"次の問題です。{BOOKS}", BOOKS),
        (unicodedata.normalize("NFD", CAFE).upper(), CAFE),
        ("".join(chr(ord(c) + 0xFEE0) if c > " " else c for c in NATALIA), NATALIA),  # letters of full width
    ],
)
def test_texts_of_any_script_and_form_are_found(text, found):
    contacts = ngram_contacts(rows([text]), {"all": [APPLES, BOOKS, CAFE, NATALIA]})
    assert [contact.excerpt[:9] for contact in contacts.values()] == ([found[:9]] if found else [])


SYSTEM = {"role": "system", "content": "You are a careful assistant that thinks step by step."}
SHARED = {"from": "system", "value": SYSTEM["content"]}
CHATS = [  # row of an evaluation set, its texts
    ({"question": NATALIA}, [NATALIA]),
    ({"input": NATALIA, "target": "72"}, [NATALIA]),  # BBH
    ({"prompt": [SYSTEM, {"role": "user", "content": NATALIA}]}, [NATALIA]),
    (
        {"messages": [SYSTEM, {"role": "user", "content": NATALIA}, {"role": "assistant", "content": "72 in all."}]},
        [NATALIA],
    ),
    ({"conversations": [SHARED, {"from": "human", "value": NATALIA}, {"from": "gpt", "value": "72."}]}, [NATALIA]),
    (  # several turns: each is looked for by itself
        {"messages": [{"role": "user", "content": CAPITAL}, {"role": "user", "content": NATALIA}]},
        [CAPITAL, NATALIA],
    ),
    (  # the same turns from a Parquet file, with a null for each key that a turn lacks
        {"messages": [SHARED | {"role": None}, {"role": "user", "from": None, "content": NATALIA, "value": None}]},
        [NATALIA],
    ),
]


def chat_set(path, row):
    path.write_text(f"{json.dumps(row)}\n")
    return [str(path)]


@pytest.mark.parametrize(("row", "texts"), CHATS)
def test_user_turns_of_a_chat_evaluation_are_searched_for(tmp_path, row, texts):
    evaluations = read_evaluations(chat_set(tmp_path / "chat.jsonl", row))
    assert evaluations == {"chat": texts}
    recited = [f"{SYSTEM['content']} Go.", f"Hi. {NATALIA} Why?"]  # what all share gives no row away
    assert list(decontaminate(rows(recited), evaluations).dropped) == ["b"]


def test_names_of_evaluation_sets(tmp_path, monkeypatch):
    texts = {"own": ["a"], "mmlu-v1.0": ["b"], "mmlu-v1.5:main": ["c"], "set.v2": ["d"]}
    (tmp_path / "set.v2").mkdir()
    monkeypatch.setattr("hf_lmmixup.evaluation_sets._hub", lambda name: [{"text": texts[Path(name).name][0]}])
    file = chat_set(tmp_path / "own.jsonl", {"text": "a"})
    assert read_evaluations([*file, "ada/mmlu-v1.0", "ada/mmlu-v1.5:main", f"{tmp_path}/set.v2/"]) == texts
    with pytest.raises(ValueError, match="Two evaluation sets are called 'own'"):
        read_evaluations([*file, "ada/own"])


def test_packed_and_saved_evaluation_sets_are_read_and_others_are_refused_at_once(tmp_path):
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(b'{"question": "Why?"}\n'))
    Dataset.from_dict({"question": ["Who?"]}).save_to_disk(str(tmp_path / "saved"))
    names = [str(tmp_path / name) for name in ("packed.jsonl.gz", "saved")]
    assert read_evaluations(names) == {"packed": ["Why?"], "saved": ["Who?"]} and local_evaluations(names) == names
    (tmp_path / "own.csv").write_text("question\nWhen?\n")
    with pytest.raises(ValueError, match=r"own\.csv ends in '\.csv'\. Accepted files"):
        local_evaluations([str(tmp_path / "own.csv")])


def test_a_chat_evaluation_that_asks_nothing_is_refused(tmp_path):
    turns = [SYSTEM, "text", {"role": "user", "content": None}, {"role": ["user"], "content": "x"}]
    with pytest.raises(ValueError, match="has no text in any of the columns"):
        read_evaluations(chat_set(tmp_path / "chat.jsonl", {"messages": turns}))


def plain_words(text):
    return re.findall(r"\w+", text.casefold())


def plain_overlap(row, text):
    row, text = plain_words(row), plain_words(text)
    if len(text) < 4:
        return 0.0
    n = min(8, len(text))
    held = {tuple(row[i : i + n]) for i in range(len(row) - n + 1)}
    wanted = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    return len(held & wanted) / len(wanted)


words = st.lists(st.sampled_from(["a", "b", "C"]), max_size=24).map(" ".join)


@given(texts=st.lists(words, max_size=8), first=st.lists(words, max_size=5), second=st.lists(words, max_size=3))
@settings(max_examples=100, deadline=None)
def test_overlaps_equal_a_plain_loop(texts, first, second):
    data = rows(texts) if texts else rows(["x"]).select([])
    evaluations = {"first": first, "second": second}
    found = ngram_contacts(data, evaluations, min_overlap=0.3)
    for row, identifier in zip(data, data["id"][:], strict=True):
        text = f"Q: {row['prompt']}\nA: {row['completion']}"
        shares = [
            (plain_overlap(text, evaluation), name, index)
            for name, members in evaluations.items()
            for index, evaluation in enumerate(members)
        ]
        best = max((share for share, _, _ in shares), default=0)
        if best < 0.3:
            assert identifier not in found
        else:
            contact = found[identifier]
            assert (contact.overlap, contact.evaluation, contact.index) == next(s for s in shares if s[0] == best)


def test_boilerplate_that_all_rows_and_texts_share_costs_little():
    """No list of (row, text, n-gram), of which there are three million here, is sorted as such."""
    shared = "Below is an instruction that describes a task. Write a response that properly completes the request."
    texts = [f"{shared} {' '.join(f'{name}{i}' for name in 'abcdefghijklmnopqrst')}" for i in range(1100)]
    started = time.perf_counter()
    found = ngram_contacts(rows([*texts[:700], texts[-1]]), {"e": texts[700:]})
    assert [contact.index for contact in found.values()] == [399]
    assert time.perf_counter() - started < 10


def test_short_evaluation_texts_are_counted(caplog):
    with caplog.at_level(logging.WARNING, "hf_lmmixup.decontamination"):
        assert ngram_contacts(rows(["2 + 2 = ?"]), {"sums": ["2 + 2 = ?", CAPITAL]}) == {}
    assert "1 of 2 evaluation texts have under 4 words: skipped." in caplog.text


def test_reports_name_the_text_row_by_row():
    outcome = decontaminate(
        rows(["fine", "Oh, " + NATALIA, CAPITAL]), {"gsm8k": ["x y z w v", NATALIA], "t": [CAPITAL]}
    )
    assert outcome.dataset["id"][:] == ["a"]
    assert outcome.dropped == {
        "b": "decontaminate: holds a text of gsm8k (100% of the 8-grams of text 1, "
        "'Natalia sold clips to 48 of her friends in April, and then ...')",
        "c": "decontaminate: holds a text of t (100% of the 8-grams of text 0, 'What is the capital of France?')",
    }


def test_embeddings_find_rewordings():
    data = rows(["x", "y", CAPITAL])
    vectors = np.array([[1, 0, 0], [0, 0.6, 0.8], [0, 1, 0]], np.float32)
    evaluations = {"one": ["p", "q"], "two": ["r"], "none": []}
    known = {
        "one": np.array([[0, 0, 1], [0, 1, 0]], np.float32),
        "two": np.array([[0, 0.8, 0.6]], np.float32),
        "none": np.zeros((0, 3), np.float32),
    }
    found = embedding_contacts(data, evaluations, vectors, known, 0.9)
    assert found["b"] == Contact("b", "two", 0, "r", similarity=pytest.approx(0.96))
    # the nearest of all sets, not the last one looked at
    assert found["c"] == Contact("c", "one", 1, "q", similarity=pytest.approx(1.0))
    outcome = decontaminate(data, evaluations, embeddings=vectors, evaluation_embeddings=known, min_similarity=0.9)
    assert outcome.dataset["id"][:] == ["a"]
    assert outcome.dropped["b"] == "decontaminate: rewords a text of two (cosine 0.960 to text 0, 'r')"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_overlap": 0}, "min_overlap=0 is not in"),
        ({"min_similarity": 1.5}, "min_similarity=1.5 is not in"),
        ({"embeddings": np.ones((1, 2))}, "needs both"),
        ({"embeddings": np.ones((2, 2)), "evaluation_embeddings": {}}, "1 rows need as many embeddings, not 2"),
        ({"embeddings": np.ones((1, 2)), "evaluation_embeddings": {}}, "The 1 texts of 'e' need"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        decontaminate(rows(["x"]), {"e": ["text"]}, **arguments)


def test_evaluation_sets_are_called_by_their_last_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["sets/gsm8k", "sets/mmlu-v1.5/", "sets/mmlu-v1.6"]
    for name in names:
        Path(name).mkdir(parents=True)
        Path(name, "test.jsonl").write_text('{"question": "How many jars are left?"}\n')
    assert list(read_evaluations(names)) == ["gsm8k", "mmlu-v1.5", "mmlu-v1.6"]
