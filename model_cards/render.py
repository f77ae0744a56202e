"""The cards of what this project publishes: the quickstart's distiller, dataset and datastore.

    make cards                          # cards from facts.json
    make cards RUN=runs/quickstart      # facts.json from a finished run, then the cards

`facts.json` is what the run left, without the texts of rows. A test renders the cards again and compares them whole.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_lmmixup.artifacts import datastore_facts
from hf_lmmixup.cards import render_dataset_card, render_datastore_card, render_model_card


FOLDER = Path(__file__).parent
FACTS = FOLDER / "facts.json"

OWNER = "OWNER"
"""Stands for the account that publishes."""

WITHOUT = ("examples", "map", "histories", "transitions", "costs", "arms")
"""Facts that no card shows."""


def render(facts: Mapping[str, Any]) -> dict[str, str]:
    """File name -> card."""
    name = facts["name"]
    return {
        "dataset.md": render_dataset_card({**facts, "repo_id": f"{OWNER}/{name}-distilled"}),
        "distiller.md": render_model_card(
            {**facts, "repo_id": f"{OWNER}/{name}-distiller", "licenses": ["apache-2.0"]}
        ),
        "datastore.md": render_datastore_card(
            {**facts, "repo_id": f"{OWNER}/{name}-datastore", "licenses": ["apache-2.0"]}
        ),
    }


def facts_of(run: Path) -> dict[str, Any]:
    """The facts of a finished run that cards need."""
    facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in facts.items() if name not in WITHOUT}
    held_out = (facts.get("held_out") or {}).items()
    kept["held_out"] = {state: {k: v for k, v in result.items() if k != "examples"} for state, result in held_out}
    return {**kept, "datastore": datastore_facts(run / "datastore")}


def main() -> None:
    """Write facts, if a run is named, and all cards."""
    if len(sys.argv) > 1:
        text = json.dumps(facts_of(Path(sys.argv[1])), indent=2, sort_keys=True, ensure_ascii=False)
        FACTS.write_text(f"{text}\n", encoding="utf-8")
    for name, card in render(json.loads(FACTS.read_text(encoding="utf-8"))).items():
        (FOLDER / name).write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
