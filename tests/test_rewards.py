import logging
import pickle
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from hashing_encoder import HashingEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup import reward_settings, rewards
from hf_lmmixup.datastore import build
from hf_lmmixup.encoder import load_encoder
from hf_lmmixup.prompts import format_completion
from hf_lmmixup.records import TaskType
from hf_lmmixup.rewards import alignment_reward, coverage_reward, format_reward, mixup_reward, quality_reward


ALL = [format_reward, alignment_reward, quality_reward, coverage_reward, mixup_reward]
KINDS = [kind.value for kind in TaskType]
VARIABLES = ["DATASTORE", "ENCODER", "ENCODER_PRECISION", "QUALITY_MODE", "QUALITY_JUDGE", "MIXUP_WEIGHTS"]

ANSWERS = {
    "qa": "Q: What causes tides?\nA: The Moon pulls on the oceans, so that two tides come each day.",
    "mcq": "Q: What causes tides?\nA) The Moon\nB) Wind\nC) Ships\nD) Rain\nAnswer: A) The Moon. It pulls the seas.",
    "tfq": "Statement: The Moon causes tides.\nAnswer: True. It pulls on the oceans each day.",
    "cs": "C: Tides\nS: The Moon pulls on the oceans, so that two tides come each day.",
    "para": "The Moon pulls on the oceans, so that two tides come and go each day.",
}


def said(answer):
    return format_completion("They share a subject.", answer)


def forget():
    for loader in (
        reward_settings._encoder,
        reward_settings._stored,
        reward_settings._bundled,
        reward_settings._say_once,
    ):
        loader.cache_clear()


@pytest.fixture(autouse=True)
def settings_of_nobody(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(f"HF_LMMIXUP_{name}", raising=False)
    yield
    forget()


@pytest.fixture
def hashing(monkeypatch):
    """The rewards with a tiny encoder; gives the list of loads and the encoder."""
    encoder, loads = HashingEncoder(), []

    def load(name=None, *, revision=None, precision="auto"):
        loads.append((name, revision, precision))
        return encoder

    monkeypatch.setattr(reward_settings, "load_encoder", load)
    forget()
    return encoder, loads


def store(tmp_path, monkeypatch, texts, scores, kinds):
    build(texts, scores, kinds, HashingEncoder()).save(tmp_path / "store")
    monkeypatch.setenv("HF_LMMIXUP_DATASTORE", str(tmp_path / "store"))
    forget()


class Expecting:
    """A datastore that expects the same score of everything."""

    encoder, floor, transitions = "hashing", 0.0, dict.fromkeys(KINDS)

    def __init__(self, score):
        self.score = score

    def judge_embedded(self, texts, embeddings, kind, *, judge=None):
        return np.full(len(texts), self.score)

    def nearest(self, embeddings, kind):
        return np.full(len(embeddings), 0.5)


FORMS = [
    # completion, task type, reward
    (said(ANSWERS["qa"]), "qa", 1.0),
    (said(ANSWERS["qa"]), None, 1.0),  # a missing task type is qa, with its answer form
    (said(ANSWERS["mcq"]), "mcq", 1.0),
    (said(ANSWERS["tfq"]), "tfq", 1.0),
    (said(ANSWERS["cs"]), "cs", 1.0),
    (said(ANSWERS["para"]), "para", 1.0),
    (said(ANSWERS["para"]), "qa", 0.5),
    (said(ANSWERS["qa"]), "para", 0.5),
    ("<think></think><answer></answer>", "para", 0.0),  # published code: 1.0
    ("<think>t</think><answer>Q:A:</answer>", "qa", 0.5),  # published code: 1.0
    ("<think>t</think><answer>Answer:</answer>", "tfq", 0.5),  # published code: 1.0
    ("<think>t</think><answer>a</answer>x<answer>b</answer>", "para", 0.0),  # published code: 1.0
    ("<think>t</think><ANSWER>Q: a\nA: b</ANSWER>", "qa", 0.0),  # published code: 1.0
    ("any words at all", "para", 0.0),  # published code: 0.5
]


@pytest.mark.parametrize(("completion", "kind", "reward"), FORMS)
def test_format(completion, kind, reward):
    assert format_reward([completion], [kind]) == [reward]
    assert format_reward([[{"role": "assistant", "content": completion}]], [kind]) == [reward]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"sources": ["Q: tides\nA: moon"]}, "'sources' holds 'Q: tides.*Expected a list of texts"),
        ({"sources": [[{"role": "user"}]]}, "'sources' holds .*role.*Expected a list of texts"),
        ({"sources": [7]}, "'sources' holds '7'"),
        ({"reference": [7]}, "'reference' holds '7'. Expected a text"),
        ({"reference": [[{"role": "assistant", "content": "x"}]]}, "'reference' holds .*Expected a text"),
    ],
)
def test_a_column_of_something_else_is_a_mistake_of_the_dataset(columns, words):
    for reward in ALL:
        with pytest.raises(ValueError, match=words):
            reward([said(ANSWERS["qa"])], **columns)


def test_an_empty_reference_is_none(hashing):
    for empty in ("", " \n"):
        assert alignment_reward([said(ANSWERS["qa"])], reference=[empty], sources=[[None, "moon"]]) == [None]


def test_an_unknown_task_type_is_a_mistake_of_the_dataset():
    with pytest.raises(ValueError, match="Unknown task type 'essay'"):
        format_reward([said("a")], ["essay"])


LEVELS = [
    # expected score, nearest class, published code
    (5.0, 1.0, 1.0),
    (4.0, 1.0, 1.0),
    (3.98, 1.0, 0.0),  # most likely class 4: the published threshold on the mean gives nothing
    (3.5, 1.0, 0.0),
    (3.4, 0.3, 0.0),
    (3.0, 0.3, 0.3),
    (3.0001, 0.3, 0.0),  # the published comparison with 3 is exact
    (2.6, 0.3, 0.0),
    (2.4, 0.0, 0.0),
    (0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("expected", "nearest", "upstream"), LEVELS)
def test_quality_levels(hashing, monkeypatch, expected, nearest, upstream):
    monkeypatch.setattr(rewards, "loaded_datastore", lambda: Expecting(expected))
    assert quality_reward([said(ANSWERS["qa"])], ["qa"]) == [nearest]
    monkeypatch.setenv("HF_LMMIXUP_QUALITY_MODE", "upstream")
    assert quality_reward([said(ANSWERS["qa"])], ["qa"]) == [upstream]


def test_quality_abstains_without_a_datastore_and_says_so_once(caplog):
    with caplog.at_level(logging.WARNING):
        assert quality_reward([said(ANSWERS["qa"]), "malformed"], ["qa", "qa"]) == [None, None]
        quality_reward([said(ANSWERS["qa"])], ["qa"])
    assert [record.message.count("HF_LMMIXUP_DATASTORE is not set") for record in caplog.records] == [1]


def test_quality_abstains_only_on_task_types_that_the_datastore_lacks(hashing, tmp_path, monkeypatch):
    store(tmp_path, monkeypatch, [ANSWERS["qa"]] * 3, [5, 5, 5], ["qa"] * 3)
    assert quality_reward([said(ANSWERS["cs"]), said(ANSWERS["qa"]), "x"], ["cs", "qa", "qa"]) == [None, 1.0, 0.0]


def test_quality_abstains_where_the_subject_is_far_and_the_reference_decides(hashing, monkeypatch):
    class Distant(Expecting):
        floor = 0.3

        def nearest(self, embeddings, kind):
            near = HashingEncoder().encode([ANSWERS["qa"]])
            return (embeddings @ near.T)[:, 0]

    monkeypatch.setattr(rewards, "loaded_datastore", lambda: Distant(4.0))
    far = "Q: How do bees dance?\nA: Bees waggle inside dark hives, which shows where flowers bloom."
    assert quality_reward([said(far)], ["qa"]) == [None]
    # With a known subject an answer does not escape judgement by leaving it, and the other way round.
    assert quality_reward([said(far)], ["qa"], reference=[ANSWERS["qa"]]) == [1.0]
    assert quality_reward([said(ANSWERS["qa"])], ["qa"], reference=[far]) == [None]


def test_a_copied_row_of_the_datastore_earns_nothing_where_it_is_off_the_subject(hashing, tmp_path, monkeypatch):
    other = "Q: How do bees dance?\nA: Bees waggle inside dark hives, which shows where flowers bloom."
    store(tmp_path, monkeypatch, [other, ANSWERS["qa"]], [5, 5], ["qa", "qa"])
    assert quality_reward([said(other)], ["qa"], reference=[ANSWERS["qa"]]) == [0.0]
    assert quality_reward([said(other)], ["qa"], reference=[other]) == [1.0]
    assert quality_reward([said(ANSWERS["qa"])], ["qa"], reference=[ANSWERS["qa"]]) == [1.0]


def test_an_encoder_that_fails_is_not_papered_over(hashing, tmp_path, monkeypatch):
    """Published code turns any exception into 0.5 for the whole batch."""
    store(tmp_path, monkeypatch, [ANSWERS["qa"]], [5], ["qa"])
    monkeypatch.setattr(HashingEncoder, "encode", lambda self, texts: 1 / 0)
    for reward in (quality_reward, alignment_reward):
        with pytest.raises(ZeroDivisionError):
            reward([said(ANSWERS["qa"])], task_type=["qa"], reference=["x"])


def test_a_datastore_of_another_encoder_is_refused(hashing, tmp_path, monkeypatch):
    build([ANSWERS["qa"]], [5], ["qa"], HashingEncoder("older")).save(tmp_path / "store")
    monkeypatch.setenv("HF_LMMIXUP_DATASTORE", str(tmp_path / "store"))
    with pytest.raises(ValueError, match="HF_LMMIXUP_ENCODER='hashing', but the datastore .* made with 'older'"):
        quality_reward([said(ANSWERS["qa"])], ["qa"])


@pytest.mark.parametrize("name", ["", "hashing"])
def test_the_encoder_is_loaded_in_the_revision_of_the_datastore(hashing, tmp_path, monkeypatch, name):
    encoder, loads = hashing
    monkeypatch.setattr(HashingEncoder, "revision", "0123abc")
    store(tmp_path, monkeypatch, [ANSWERS["qa"]], [5], ["qa"])
    monkeypatch.setenv("HF_LMMIXUP_ENCODER", name)
    assert quality_reward([said(ANSWERS["qa"])], ["qa"]) == [1.0]
    assert loads == [("hashing", "0123abc", "auto")]


def test_alignment_compares_with_the_reference_and_abstains_without(hashing):
    mine = said(ANSWERS["qa"])
    found = alignment_reward([mine, mine, mine, "x"], reference=[ANSWERS["qa"], "Q: bees?\nA: honey", None, "x"])
    assert found == [1.0, 0.0, None, 0.0]
    assert alignment_reward([mine]) == [None]


def test_coverage_looks_at_the_cluster(hashing):
    """Published rewards never see the inputs."""
    sources = ["Q: tides\nA: moon pulls the oceans", "Q: how many\nA: two tides come each day"]
    lost = said("Q: What causes tides?\nA: Some think that the sea simply moves around like that.")
    whole, less, none = coverage_reward([said(ANSWERS["qa"]), lost, lost], sources=[sources, sources, None])
    assert whole > 0.9 > 0.5 > less and none is None
    prompt = [{"role": "user", "content": "\n\n".join([*sources, "Merge them."])}]
    assert coverage_reward([said(ANSWERS["qa"])], prompts=[prompt]) == [whole]


def test_the_sum_has_the_published_weights(hashing, tmp_path, monkeypatch):
    store(tmp_path, monkeypatch, [ANSWERS["qa"], "Q: bees?\nA: honey"], [5, 1], ["qa", "qa"])
    columns = {
        "task_type": ["qa"],
        "reference": ["Q: What makes bread rise?\nA: Yeast breathes out gas in the dough."],
    }
    parts = [
        reward([said(ANSWERS["para"])], **columns)[0] for reward in (quality_reward, alignment_reward, format_reward)
    ]
    assert mixup_reward([said(ANSWERS["para"])], **columns) == [pytest.approx(np.dot(parts, [0.5, 0.4, 0.1]))]


def test_weights_of_abstaining_parts_are_shared_out(hashing):
    assert mixup_reward([said(ANSWERS["qa"])], task_type=["qa"]) == [1.0]  # format alone
    assert mixup_reward([said(ANSWERS["qa"])], task_type=["cs"], reference=[ANSWERS["qa"]]) == [pytest.approx(0.9)]


WEIGHTS = [
    # setting, reward of a completion with alignment 0 and format 1
    ('{"quality": 0.0, "alignment": 0.5, "format": 0.5}', 0.5),
    ('{"alignment": 0.0}', 1.0),  # a weight of 0 counts; published code takes the default instead
    ('{"qa": {"alignment": 0.0, "format": 0.2}}', 1.0),
    ('{"cs": {"alignment": 0.0}}', 0.1 / 0.5),
    ('{"alignment": 0, "format": 0}', None),
]


@pytest.mark.parametrize(("weights", "reward"), WEIGHTS)
def test_weights_can_be_set(hashing, monkeypatch, weights, reward):
    monkeypatch.setenv("HF_LMMIXUP_MIXUP_WEIGHTS", weights)
    found = mixup_reward([said(ANSWERS["qa"])], task_type=["qa"], reference=["Q: bees?\nA: honey"])
    assert found == [reward if reward is None else pytest.approx(reward)]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MIXUP_WEIGHTS", "0.5", "must name either parts"),
        ("MIXUP_WEIGHTS", "{", "not valid JSON"),
        ("MIXUP_WEIGHTS", '{"quality": -1}', "'quality': -1"),
        ("MIXUP_WEIGHTS", '{"qa": {"speed": 1}}', "'speed': 1"),
        ("MIXUP_WEIGHTS", '{"qa": 3}', "qa has 3: None"),
        ("QUALITY_MODE", "paper", r"Expected one of \['nearest', 'upstream'\]"),
        ("QUALITY_JUDGE", "me", r"Expected one of \['default', 'head', 'neighbors'\]"),
        ("ENCODER_PRECISION", "int4", "HF_LMMIXUP_ENCODER_PRECISION='int4' is unknown"),
    ],
)
def test_a_setting_that_is_wrong_is_named(hashing, monkeypatch, variable, value, message):
    monkeypatch.setattr(rewards, "loaded_datastore", lambda: Expecting(4.0))
    monkeypatch.setenv(f"HF_LMMIXUP_{variable}", value)
    with pytest.raises(ValueError, match=message):
        mixup_reward([said(ANSWERS["qa"])], task_type=["qa"], reference=["x"])


def test_one_load_and_one_embedding_of_each_text(hashing, tmp_path, monkeypatch):
    """Published code loads the encoder twice in each actor and embeds each answer twice."""
    encoder, loads = hashing
    store(tmp_path, monkeypatch, [ANSWERS["cs"]], [5], ["qa"])
    completions, references = [said(ANSWERS["qa"])] * 3 + [said(ANSWERS["tfq"])], [ANSWERS["para"]] * 4
    for _ in range(2):
        for reward in ALL:
            reward(completions, task_type=["qa"] * 4, reference=references)
    assert sorted(encoder.encoded) == sorted({ANSWERS["qa"], ANSWERS["tfq"], ANSWERS["para"]})
    assert len(loads) == 1


def test_the_texts_of_all_task_types_are_encoded_together(hashing, tmp_path, monkeypatch):
    """Batches of one task type each would be half empty."""
    store(tmp_path, monkeypatch, list(ANSWERS.values()), [5, 4, 3, 2, 1], list(ANSWERS))
    calls, encode = [], HashingEncoder.encode
    monkeypatch.setattr(HashingEncoder, "encode", lambda self, texts: calls.append(len(texts)) or encode(self, texts))
    columns = {"task_type": list(ANSWERS), "reference": [f"{answer} Indeed." for answer in ANSWERS.values()]}
    for reward in ALL:
        reward([said(answer) for answer in ANSWERS.values()], **columns)
    assert calls == [10]


def test_what_the_rewards_tell_trl(hashing, tmp_path, monkeypatch):
    store(tmp_path, monkeypatch, [ANSWERS["qa"]], [5], ["qa"])
    extra, metrics = {}, {}
    columns = {"task_type": ["qa", "qa"], "reference": [ANSWERS["qa"]] * 2, "sources": [["Q: tides\nA: moon"]] * 2}
    for reward in ALL:
        reward([said(ANSWERS["qa"]), "x"], **columns, log_extra=extra.__setitem__, log_metric=metrics.__setitem__)
    for name in ("format", "alignment", "quality", "coverage", "mixup"):
        assert metrics[f"{name}_reward/seconds"] >= 0
        assert metrics[f"{name}_reward/abstained"] == 0
        assert metrics[f"{name}_reward/guarded"] == 0.5
        assert extra[f"{name}_fault"] == [None, "malformed"]
    assert extra["expected_score"][0] == pytest.approx(metrics["quality_reward/expected_score"])
    assert extra["cosine"] == [pytest.approx(1.0), None]
    assert set(extra) >= {"coverage_kept", "coverage_supported", "coverage_sources"}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=80)
            | st.lists(
                st.sampled_from(
                    ["<think>", "</think>", "<answer>", "</answer>", "Q:", "\nA:", " a b", "\ud800", "\n"]
                ),
                max_size=12,
            ).map("".join)
            | st.text(max_size=80).map(said)
            | st.sampled_from([said(answer) for answer in ANSWERS.values()]),
            st.sampled_from([*KINDS, None]),
            st.none() | st.text(max_size=30) | st.sampled_from(list(ANSWERS.values())),
            st.none() | st.lists(st.text(max_size=30), max_size=3),
        ),
        min_size=1,
        max_size=6,
    ),
    st.randoms(),
)
def test_any_batch_gets_the_rewards_of_its_rows(rows, random):
    """Finite, in [0, 1] or None, without an error, whatever else is in the batch and in whatever order."""

    def columns(chosen):
        kinds, references, sources = ([row[part] for row in chosen] for part in (1, 2, 3))
        return {"task_type": kinds, "reference": references, "sources": sources}

    encoder = HashingEncoder()
    datastore = build(list(ANSWERS.values()), [5, 3, 2, 4, 1], list(ANSWERS), HashingEncoder())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards, "loaded_encoder", lambda: encoder)
        patch.setattr(rewards, "loaded_datastore", lambda: datastore)
        shuffled = random.sample(range(len(rows)), len(rows))
        for reward in ALL:
            together = reward([row[0] for row in rows], **columns(rows))
            assert all(value is None or 0 <= value <= 1 for value in together)
            moved = [rows[place] for place in shuffled]
            assert reward([row[0] for row in moved], **columns(moved)) == [together[place] for place in shuffled]
            assert [reward([row[0]], **columns([row]))[0] for row in rows] == together


ATTACKS = [
    "<think>" * 150_000,
    "<think>" + "</think>" * 120_000,
    "<answer></answer>" * 60_000,
    said("Q: " * 300_000),
    said("A) " * 300_000 + "\nA:"),
    said("word " * 200_000),
    said("\n" * 1_000_000 + "x"),
    format_completion("r " * 500_000, ANSWERS["qa"]),
    said("\u0430b " * 300_000),
]


PROMISED, ATTEMPTS = 0.05, 12
"""Processor seconds for a megabyte, and how often a machine that others use too may try."""


def is_quick(reward, arguments):
    """Whether a reward keeps the promise; each attempt has other arguments, so that nothing is remembered."""
    for attempt in range(ATTEMPTS):
        completions, columns = arguments(attempt)
        start = time.process_time()
        reward(completions, **columns)
        if time.process_time() - start < PROMISED:
            return True
    return False


@pytest.mark.parametrize("completion", ATTACKS, ids=lambda text: repr(text[:30] + text[-20:]))
def test_a_megabyte_takes_little_time(hashing, tmp_path, monkeypatch, completion):
    store(tmp_path, monkeypatch, [ANSWERS["qa"]], [5], ["qa"])
    columns = {"task_type": ["qa"], "reference": [ANSWERS["qa"]], "sources": [["Q: tides\nA: moon"]]}
    for reward in ALL:
        reward([said("warm")], **columns)
        for text in (completion, completion.replace("</think>", "", 1)):
            assert is_quick(reward, lambda attempt, text=text: ([text + " " * attempt], columns))


class Still(HashingEncoder):
    """Looks at the beginning of a text, as models do."""

    def encode(self, texts):
        return super().encode([text[:1000] for text in texts])


@pytest.mark.parametrize("unit", ["a ", "word number 12 and Name. ", "\u0430b ", "\n", "Q: A: "], ids=ascii)
@pytest.mark.parametrize("place", ["reference", "sources", "prompts"])
def test_a_megabyte_in_a_column_takes_little_time(place, unit, tmp_path, monkeypatch):
    monkeypatch.setattr(reward_settings, "load_encoder", lambda *given, **options: Still())
    store(tmp_path, monkeypatch, [ANSWERS["qa"]], [5], ["qa"])
    columns = {"task_type": ["qa"], "reference": [ANSWERS["qa"]]}
    for reward in ALL:
        reward([said(ANSWERS["qa"])], **columns)

        def arguments(attempt, name=reward.__name__):
            text = (f"{name} {attempt} " + unit * 1_000_000)[:1_000_000]
            given = {"reference": [text], "sources": [["Q: tides\nA: moon", text]], "prompts": [f"{text}\n\nMerge."]}
            return [said(ANSWERS["qa"])], {**columns, place: given[place]}

        assert is_quick(reward, arguments)


def test_the_rewards_open_no_connection_with_the_offline_encoder(tmp_path, monkeypatch):
    build(list(ANSWERS.values()), [5, 4, 5, 4, 5], KINDS, load_encoder()).save(tmp_path / "store")
    monkeypatch.setenv("HF_LMMIXUP_DATASTORE", str(tmp_path / "store"))
    columns = {
        "task_type": KINDS,
        "reference": list(ANSWERS.values()),
        "sources": [["Q: tides\nA: moon"]] * len(KINDS),
    }
    forget()
    opened = []

    def refuse(self, *given):
        opened.append(given)
        raise OSError("no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for reward in ALL:
        assert None not in reward([said(answer) for answer in ANSWERS.values()], **columns)
    assert opened == []


def test_rewards_are_picklable_plain_functions():
    for reward in ALL:
        assert pickle.loads(pickle.dumps(reward)) is reward  # noqa: S301 -- our own bytes
        assert reward.__name__.endswith("_reward")


def test_the_import_is_light():
    program = (
        "import sys, hf_lmmixup.rewards\n"
        "print([name for name in ('torch', 'transformers', 'sentence_transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
