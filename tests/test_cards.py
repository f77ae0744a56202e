"""Cards: valid metadata, the same bytes for the same facts, and nothing that a name or a reason could break."""

import re

import pytest
import yaml
from huggingface_hub import DatasetCard

from hf_lmmixup.card_markup import escape
from hf_lmmixup.cards import render_dataset_card, size_category, source_name


FACTS = {
    "name": "pile",
    "recipe": {"input": "bundled", "distiller": {"model": "tiny"}},
    "ledger": {
        "rows_in": 10,
        "kept": 3,
        "merged": 5,
        "dropped": {"load: empty completion": 2},
        "distilled_rows": 2,
        "notes": ["No distilled row scored 4 or more."],
    },
    "rows": {"in": 10, "out": 5, "original": 3, "distilled": 2},
    "scores": {"before": {"1": 6, "none": 4}, "distilled": {"3": 2}, "after": {"3": 5}},
    "held_out": {"GRPO": {"format": 0.9778, "alignment": None, "quality": 0.25, "total": 0.3}},
    "models": ["untrained", "cold start", "GRPO"],
    "versions": {"trl": "1.16.0"},
}
HOSTILE = "a|b\n---\nlicense: evil\n---\n<script>alert(1)</script> {{ 191 * 7 }} `x` \u2028## head"


def head(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_head_says_what_the_hub_reads():
    card = render_dataset_card(FACTS)
    assert head(card) == {
        "license": "apache-2.0",
        "pretty_name": "pile",
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "tags": ["instruction-distillation", "lm-mixup", "hf_lmmixup", "synthetic"],
    }
    assert DatasetCard(card).data.to_dict()["license"] == "apache-2.0"


def test_the_body_holds_ledger_notes_and_rewards():
    card = render_dataset_card(FACTS)
    for line in (
        "| dropped | load: empty completion | 2 |",
        "| **rows in** | | **10** |",
        "> **Note.** No distilled row scored 4 or more.",
        "| 1 | 6 | 0 | 0 |",
        "| none | 4 | 0 | 0 |",
        "| GRPO | 0.978 | – | 0.250 | – | 0.300 |",
        "  eprint        = {2510.20449},",
    ):
        assert line in card.splitlines(), line


def test_hostile_names_change_neither_head_nor_body():
    facts = {
        **FACTS,
        "name": HOSTILE,
        "recipe": {"input": "rows.jsonl", "distiller": {"model": HOSTILE}},
        "ledger": {**FACTS["ledger"], "dropped": {HOSTILE: 2}, "notes": [HOSTILE]},
        "held_out": {HOSTILE: FACTS["held_out"]["GRPO"]},
        "models": [HOSTILE],
        "versions": {HOSTILE: HOSTILE},
    }
    card = render_dataset_card(facts)
    assert DatasetCard(card).data.to_dict()["license"] == "unknown"
    assert head(card).keys() == head(render_dataset_card(FACTS)).keys()
    # a block of code shows what stands in it
    body = re.sub(r"^(```+)yaml\n.*?^\1$", "", card.partition("\n---\n")[2], flags=re.M | re.S)
    assert "Recipe" in body and "<script>" not in body
    assert "1337" not in card
    reason = next(line for line in card.splitlines() if line.startswith("| dropped"))
    assert reason.replace("\\|", "").count("|") == 4


@pytest.mark.parametrize(
    ("distiller", "models", "said"),
    [
        (
            {"mode": "trained", "model": "tiny"},
            ["untrained", "cold start", "GRPO"],
            "a million parameters that the run built itself, trained in this run by cold start and GRPO.",
        ),
        (
            {"mode": "trained", "model": "tiny"},
            ["trained before"],
            "a million parameters that an earlier run built itself, trained in an earlier run.",
        ),
        ({"mode": "trained", "model": "ada/distiller"}, ["as it is"], "written by `ada/distiller`."),
        ({"mode": "training-free", "model": "ada/instruct"}, ["ada/instruct"], "written by `ada/instruct`."),
        ({"mode": "extractive", "model": "tiny"}, ["extractive"], "sentences of their sources, without a model."),
    ],
)
def test_the_body_says_who_distilled(distiller, models, said):
    card = render_dataset_card({**FACTS, "recipe": {"distiller": distiller}, "models": models})
    assert said in " ".join(card.split())


def test_what_is_missing_is_left_out():
    bare = {"name": "bare", "ledger": FACTS["ledger"], "rows": FACTS["rows"]}
    card = render_dataset_card(bare)
    assert head(card)["license"] == "unknown"
    assert "The license of the raw rows was not stated." in card
    assert "held-out" not in card


@pytest.mark.parametrize(
    ("rows", "category"), [(0, "n<1K"), (999, "n<1K"), (1_000, "1K<n<10K"), (2_000_000, "1M<n<10M")]
)
def test_size_categories(rows, category):
    assert size_category(rows) == category


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("bundled", "the demo pool that comes with hf_lmmixup"),
        ("tatsu-lab/alpaca", "tatsu-lab/alpaca"),  # a Hub id
        ("/home/ada/secret-client/pile.jsonl", "pile.jsonl"),  # a path of this machine
        ("data/pile.jsonl", "pile.jsonl"),
        ("C:\\work\\pile.parquet", "pile.parquet"),
        (None, "of unknown origin"),
    ],
)
def test_a_card_names_no_path_of_the_machine(given, shown):
    assert source_name(given) == shown


def test_escape():
    assert escape("a|b\n<i>*x*</i>") == r"a\|b &lt;i&gt;\*x\*&lt;/i&gt;"
