"""The committed cards are what the committed facts give, byte by byte, and say what the Hub wants to read."""

import json
import re

import pytest
import yaml
from conftest import REPOSITORY

from hf_lmmixup.cards import render_dataset_card, render_datastore_card, render_model_card


FOLDER = REPOSITORY / "model_cards"
FACTS = json.loads((FOLDER / "facts.json").read_text(encoding="utf-8"))
NAME = FACTS["name"]

CARDS = {
    "dataset.md": render_dataset_card({**FACTS, "repo_id": f"OWNER/{NAME}-distilled"}),
    "distiller.md": render_model_card({**FACTS, "repo_id": f"OWNER/{NAME}-distiller", "licenses": ["apache-2.0"]}),
    "datastore.md": render_datastore_card({**FACTS, "repo_id": f"OWNER/{NAME}-datastore", "licenses": ["apache-2.0"]}),
}


@pytest.mark.parametrize("name", CARDS)
def test_card_is_what_the_facts_give(name):
    assert (FOLDER / name).read_text(encoding="utf-8") == CARDS[name], "run `make cards`"


@pytest.mark.parametrize("name", CARDS)
def test_card_is_whole(name):
    card = CARDS[name]
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0" and "lm-mixup" in head["tags"]
    for part in ("## How to", "## Limits", "2510.20449", f"OWNER/{NAME}"):
        assert part in card, part
    assert not re.search(r"(?<![\w/])/(?:work|tmp|home|root)/", card)


def test_the_page_on_quality_says_what_the_card_says():
    page = (REPOSITORY / "docs" / "quality.md").read_text(encoding="utf-8")
    for row, judge in (("its own folds | head", "head"), ("the same | neighbors", "neighbors")):
        figures = FACTS["datastore"]["report"][judge]
        told = " | ".join(f"{figures[measure]:.3f}" for measure in ("auc", "spearman", "calibration_error"))
        assert f"| {row} | {told} |" in page


def test_distiller_card_has_results():
    (index,) = yaml.safe_load(CARDS["distiller.md"].split("---\n")[1])["model-index"]
    metrics = {metric["type"]: metric["value"] for metric in index["results"][0]["metrics"]}
    assert metrics["format_reward"] == round(FACTS["held_out"]["GRPO"]["format"], 4)
    assert "examples" not in FACTS and "histories" not in FACTS
