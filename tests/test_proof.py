"""The offline proof: its world is exact and disjoint, its figures are right, its parts fit together."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset


sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.proof import arms, distiller, job, publication, refining, statistics  # noqa: E402
from benchmarks.proof.audit import audit  # noqa: E402
from benchmarks.proof.models import endless, token_batches  # noqa: E402
from benchmarks.proof.noise import row_text, weak_rows  # noqa: E402
from benchmarks.proof.teaching import teaching_clusters  # noqa: E402
from benchmarks.proof.tiers import TIERS  # noqa: E402
from benchmarks.proof.world import (  # noqa: E402
    HELD_OUT_QUESTIONS,
    QUESTIONS,
    Character,
    Split,
    invented,
    read_facts,
    split,
    statement,
    values_by_base,
    votes,
)


@pytest.fixture(scope="module")
def worlds():
    return split(2, 30, seed=0)


@pytest.mark.parametrize(
    ("character", "facts"),
    [
        # 127821 = 1F34D: 127821 mod 100, mod 81 = 3, mod 64 = 13 (octal 15), mod 49 = 29 (septenary 41)
        ("\N{PINEAPPLE}", {"decimal": "10r21", "nonary": "9r03", "octal": "8r15", "septenary": "7r41"}),
        # 9731 = 2603: mod 81 = 11 (nonary 12), mod 64 = 3, mod 49 = 29
        ("\N{SNOWMAN}", {"decimal": "10r31", "nonary": "9r12", "octal": "8r03", "septenary": "7r41"}),
    ],
)
def test_facts_are_those_of_the_code_point(character, facts):
    assert Character(ord(character)).facts == facts
    assert all(value in values_by_base()[base] for base, value in facts.items())


def test_nobody_is_on_both_sides(worlds):
    asked = [character for group in worlds.downstream for character in group]
    assert [len(group) for group in worlds.downstream] == [30, 30] and len(set(asked)) == 60
    assert not {one.name for one in asked} & {one.name for one in worlds.teaching}
    with pytest.raises(AssertionError, match="both sides"):
        Split(worlds.teaching + asked[:1], worlds.downstream).check()


def test_invented_characters_are_nobody_elses(worlds):
    everybody = {one.name for group in (worlds.teaching, *worlds.downstream) for one in group}
    made = invented(worlds, 12, seed=0)
    assert len({one.name for one in made}) == len({one.code_point for one in made}) == 12
    assert not everybody & {one.name for one in made}
    # 0xF0000 and above is for private use: no name is assigned there, so these facts are about nothing
    assert all(one.code_point >= 0xF0000 and len(one.facts) == 4 for one in made)


def test_teaching_clusters_never_name_a_downstream_character(worlds):
    asked = {character.name for group in worlds.downstream for character in group}
    clusters = teaching_clusters(worlds.teaching, 50, seed=0)
    assert not {cluster["code_point"] for cluster in clusters} & {one.code_point for one in worlds.downstream[0]}
    prompts = [source.partition("\nA:")[0] for cluster in clusters for source in cluster["sources"]]
    named = {_name(prompt.removeprefix("Q: ")) for prompt in prompts}
    assert named and not named & asked


def _name(prompt):
    for question in QUESTIONS:
        head, _, tail = question.partition("{}")
        if prompt.startswith(head) and prompt.endswith(tail) and len(prompt) > len(head) + len(tail):
            return prompt[len(head) : len(prompt) - len(tail)]
    raise AssertionError(prompt)


def test_a_target_states_what_a_source_gives_rightly(worlds):
    for cluster in teaching_clusters(worlds.teaching, 50, seed=1):
        told = {fact for source in cluster["sources"] for fact in read_facts(source)}
        stated = list(read_facts(cluster["target"]))
        truth = Character(cluster["code_point"]).facts
        assert 3 <= len(stated) <= 4
        assert all(fact in told and truth[fact[0]] == fact[1] for fact in stated)


def test_noise_has_the_shares_it_claims(worlds):
    characters = worlds.teaching[:300]
    rows = weak_rows(characters, seed=0)
    truth = {character.code_point: character.facts for character in characters}
    right = [truth[row["code_point"]][base] == value for row in rows for base, value in read_facts(row["completion"])]
    assert 0.66 < np.mean(right) < 0.76
    assert 0.07 < np.mean([row["is_careful"] for row in rows]) < 0.13
    assert weak_rows(characters[:5], seed=3) == weak_rows(characters[:5], seed=3)
    assert max(Counter(row["id"] for row in rows).values()) == 1


def test_held_out_wordings_are_in_no_row(worlds):
    openings = {question.partition("{}")[0] for question in HELD_OUT_QUESTIONS} - {""}
    texts = [row["prompt"] for row in weak_rows(worlds.teaching[:100], seed=0)]
    assert not [text for text in texts if text.startswith(tuple(openings))]


def test_votes_take_the_commonest_value():
    texts = ["octal 8r15, decimal 10r21.", "octal: 8r16", "Sure! octal is 8r16, nonary some", "no number"]
    assert votes(texts) == {"octal": "8r16", "decimal": "10r21"}


def test_a_statement_goes_round_from_its_first_fact():
    facts = Character(ord("\N{PINEAPPLE}")).facts
    assert statement(facts, "septenary") == "septenary 7r41, decimal 10r21, nonary 9r03, octal 8r15."
    assert dict(read_facts(statement(facts, "octal"))) == facts


def test_equal_tokens_are_equal_steps_for_long_and_short_rows():
    for length in (7, 40):
        rows = [{"ids": [0] * length} for _ in range(5)]
        batches = token_batches(endless(rows, random.Random(0)), 100)
        sizes = [sum(len(row["ids"]) for row in next(batches)) for _ in range(20)]
        assert max(sizes) <= 100 and min(sizes) > 100 - length


def test_the_gap_closed_is_unknown_where_there_is_none():
    assert statistics.gap_closed(0.5, 0.25, 0.75) == 0.5
    assert np.isnan(statistics.gap_closed(0.5, 0.5, 0.5))
    assert np.isnan(statistics.interval(np.array([np.nan]))).all()


def test_shuffling_keeps_the_sizes_of_clusters():
    clustered = Dataset.from_dict({"id": list("abcdef"), "cluster_id": [0, 0, 0, 1, 1, None]})
    dealt = refining.shuffled(clustered, seed=1)
    assert Counter(dealt["cluster_id"]) == Counter(clustered["cluster_id"])
    assert list(dealt["cluster_id"]) != list(clustered["cluster_id"])


def test_the_bootstrap_is_paired():
    rng = np.random.default_rng(0)
    raw = [rng.random(40) for _ in range(3)]
    better = [values + 0.1 for values in raw]
    draws = statistics.resampled({"raw": raw, "better": better}, draws=500)
    assert np.allclose(draws["better"] - draws["raw"], 0.1)
    assert draws["raw"].std() > 0.01


@pytest.mark.parametrize(
    ("target", "tokens"),
    [(0.1, 25.0), (0.2, 50.0), (0.5, 75.0), (0.9, None)],  # before the first point, at it, between, never
)
def test_tokens_to_reach(target, tokens):
    assert statistics.tokens_to_reach([50, 100], [0.2, 0.8], target) == (None if tokens is None else tokens)


@pytest.mark.parametrize(
    ("gain", "answer"), [((0.2, [0.1, 0.3]), "Yes"), ((0.0, [-0.1, 0.1]), "Not shown"), ((-0.2, [-0.3, -0.1]), "No:")]
)
def test_the_verdict_follows_the_interval(gain, answer):
    facts = {"minus_raw": gain[0], "minus_raw_interval": gain[1]}
    assert publication.verdict({"arms": {arms.DISTILLED: facts}}).startswith(answer)


class _Answers:
    """Stands for the distiller: writes the majority of its prompt's sources, as a perfect voter would."""

    max_prompt_tokens = 1000

    def __init__(self, model):
        self.is_trained = Path(model).name != "untrained"

    def count_tokens(self, messages):
        return 10

    def generate(self, conversations, *, seeds=None):
        return [self._merge(messages[-1]["content"]) for messages in conversations]

    def _merge(self, content):
        if not self.is_trained:
            return "octal octal octal"
        sources = content.split("\n\n")[:-1]
        prompt = sources[0].partition("\nA:")[0]
        return f"<think>Most texts.</think>\n<answer>{prompt}\nA: {statement(votes(sources), 'octal')}</answer>"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_whole_proof_in_miniature(tmp_path, monkeypatch):
    """Every job but the two TRL trainings, which `--tier smoke` runs, with a voter in the distiller's place."""
    tier = dataclasses.replace(
        TIERS["smoke"], grpo_steps=0, characters=8, rated=12, documents=20, reading_steps=2, clusters=8,
        pretraining_tokens=2500, student_tokens=1500, student_width=16, width=16, step_tokens=512,
    )  # fmt: skip
    monkeypatch.setattr(distiller, "cold_start", lambda model, target, *_, **__: Path(shutil.copytree(model, target)))
    monkeypatch.setattr(refining, "Writer", _Answers)
    job.prepare_texts(tier, tmp_path)
    job.teach_distiller(tier, tmp_path)
    job.school(tier, tmp_path)
    truth = job.world(tier).downstream[0]
    job.write_rows(tmp_path / "seed_0", arms.known_rows(job.raw_pool(tier, 0), truth, 0))
    job.prepare(tier, tmp_path, 0)
    for arm in arms.ARMS:
        job.run_arm(tier, tmp_path, 0, arm)
    results = {arm: [job.read_result(tmp_path, 0, arm)] for arm in arms.ARMS}
    assert results[arms.UNTRAINED][0]["rows"] == 0 and results[arms.UNTRAINED][0]["steps"] == 0
    facts = publication.read_worlds(tmp_path, tier)[0]
    assert len(audit([facts], results, job.world(tier), tier)) == 4
    unbalanced = {**facts, "pool": {**facts["pool"], "low": facts["pool"]["low"] + 1}}
    with pytest.raises(RuntimeError, match="low"):
        audit([unbalanced], results, job.world(tier), tier)
    with pytest.raises(RuntimeError, match="arms"):
        audit([facts], {"raw": results["raw"]}, job.world(tier), tier)
    assert facts[arms.DISTILLED]["fact_accuracy"] > 2 * facts[arms.SHUFFLED]["fact_accuracy"]
    summary = statistics.summarize(results)
    text = publication.publish(tmp_path, "smoke", tier, summary, [facts])
    assert all(f"| {arm} |" in text for arm in arms.ARMS)
    assert (tmp_path / "proof.svg").read_text().startswith("<svg")
    assert (tmp_path / "proof.json").read_text().endswith("}\n")


def test_the_page_says_what_was_measured():
    docs = Path(__file__).parents[1] / "docs"
    page, facts = (docs / "proof.md").read_text(), json.loads((docs / "proof.json").read_text())
    assert (docs / "proof.json").read_text().endswith("}\n")
    assert publication.tables(facts, facts["worlds"]) in page
    assert publication.verdict(facts) in page
    assert (docs / "proof.svg").read_text() == publication.plot(facts)


@pytest.mark.slow
def test_the_smoke_tier_runs_with_both_trl_trainings():
    """One minute alone; `trl sft` and `trl grpo` in processes of their own."""
    command = [sys.executable, "-m", "benchmarks.proof", "--tier", "smoke"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ok: ") == 4
    assert done.stdout.startswith("Smoke checks the machinery")


def test_rows_are_what_the_pipeline_reads(worlds):
    row = weak_rows(worlds.downstream[0], seed=0)[0]
    assert row_text(row) == f"Q: {row['prompt']}\nA: {row['completion']}"
