r"""Clusters with their best possible merge, built from characters that no student is ever asked about.

They play the part of MIXTURE: the distiller's cold start and GRPO are trained on them. A cluster holds weak rows of
one character and now and then a stray one, in order of id as `distill` sorts them. Its target states the facts that at
least one source gives rightly, asks the question of the first source and starts with the fact that stands first, so
that nothing in it must be guessed. One target::

    <think>What most of the texts say.</think>
    <answer>Q: Last digits of pineapple
    A: octal 8r15, septenary 7r41, decimal 10r21, nonary 9r03.</answer>
"""

import random
from collections.abc import Sequence
from typing import Any

from benchmarks.proof.noise import row_text, weak_row
from benchmarks.proof.world import BASES, HELD_OUT_QUESTIONS, QUESTIONS, Character, read_facts, statement
from hf_lmmixup.prompts import distillation_messages, format_completion
from hf_lmmixup.records import TaskType, pair_text


REASONING = "What most of the texts say."
STRAY = 0.08
"""Share of rows that belong to another character: what the pipeline's own clusters hold (docs/proof.md)."""
SIZES = range(4, 11)
"""Rows of a cluster."""
FEWEST_FACTS = 3


def teaching_cluster(character: Character, others: Sequence[Character], rng: random.Random) -> dict[str, Any] | None:
    """Sources and target of one cluster; `None` if the sources say too little."""
    rows = []
    for _ in range(rng.choice(SIZES)):
        subject = character if rng.random() >= STRAY else rng.choice(others)
        rows.append(weak_row(subject, others, rng))
    rows.sort(key=lambda row: row["id"])
    own = [row for row in rows if row["code_point"] == character.code_point]
    stated = [fact for row in own for fact in read_facts(row["completion"]) if fact in character.facts.items()]
    facts = dict(stated)
    if len(facts) < FEWEST_FACTS:
        return None
    prompt = QUESTIONS[own[0]["question"]].format(character.name)
    return {
        "code_point": character.code_point,
        "sources": [row_text(row) for row in rows],
        "target": pair_text(prompt, statement(facts, stated[0][0])),
    }


def teaching_clusters(characters: Sequence[Character], count: int, seed: int) -> list[dict[str, Any]]:
    """So many clusters about random characters."""
    rng = random.Random(seed)
    clusters: list[dict[str, Any]] = []
    while len(clusters) < count:
        cluster = teaching_cluster(rng.choice(characters), characters, rng)
        if cluster is not None:
            clusters.append(cluster)
    return clusters


def sft_row(cluster: dict[str, Any]) -> dict[str, Any]:
    """A cluster as `trl sft` reads it."""
    completion = format_completion(REASONING, cluster["target"])
    return {
        "prompt": distillation_messages(cluster["sources"]),
        "completion": [{"role": "assistant", "content": completion}],
    }


def grpo_row(cluster: dict[str, Any]) -> dict[str, Any]:
    """A cluster as `trl grpo` and the rewards read it."""
    return {
        "prompt": distillation_messages(cluster["sources"]),
        "task_type": TaskType.QA.value,
        "reference": cluster["target"],
        "sources": cluster["sources"],
    }


def schooling(characters: Sequence[Character], seed: int) -> list[dict[str, Any]]:
    """What a student reads before it is taught: each character in every wording, in weak and in tidy rows in turn.

    From it a student learns what the questions mean and that a fact belongs to a name, not to a wording: what a
    pretrained model knows. The wordings of the examination are among them, with other characters.
    """
    rng = random.Random(seed)
    rows = []
    for character in characters:
        for number, question in enumerate((*QUESTIONS, *HELD_OUT_QUESTIONS)):
            row = tidy_row(character, rng) if number % 2 else weak_row(character, characters, rng)
            rows.append({"prompt": question.format(character.name), "completion": row["completion"]})
    return rows


def tidy_row(character: Character, rng: random.Random) -> dict[str, Any]:
    """A complete and right row with a random question and a random fact first."""
    prompt, first = rng.choice(QUESTIONS).format(character.name), rng.choice(list(BASES))
    return {"prompt": prompt, "completion": statement(character.facts, first)}
