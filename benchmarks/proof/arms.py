"""The data of each arm, and one student taught with it.

Baselines are the whole raw pool, as many random rows, and as many top-rated rows as the distilled arm has; then
distilled rows, with the pool's high rows, and the same data through the two companions; above them two oracles, the
truth and a majority vote; below them two controls that must fail. One row of the distilled arm::

    {"prompt": "Last digits of pineapple", "completion": "octal 8r15, septenary 7r41, decimal 10r21, nonary 9r03."}
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from benchmarks.proof.models import endless
from benchmarks.proof.refining import Pool
from benchmarks.proof.student import Curve, Rows, Student, encoded
from benchmarks.proof.world import BASES, QUESTIONS, Character, statement, votes
from hf_lmmixup.mosaic import build_mosaics
from hf_lmmixup.mosaic_config import MosaicConfig
from hf_lmmixup.selection import merge, select


RAW, DISTILLED, HIGH = "raw", "distilled", "distilled+high"
GOLD, MAJORITY = "gold", "majority"
MOSAIC, SFTMIX = "distilled+high+mosaic", "distilled+high+sftmix"
SHUFFLED, UNTRAINED = "shuffled", "untrained"
LONG_RAW = "raw, longer"
NEED_NO_DISTILLER = (LONG_RAW, RAW, GOLD, MAJORITY)
"""The raw arm with a larger budget; beside the comparison, for token efficiency."""
ARMS = (RAW, "random", "top-rated", DISTILLED, HIGH, MOSAIC, SFTMIX, GOLD, MAJORITY, SHUFFLED, UNTRAINED)

MOSAICS: dict[str, Any] = {"max_items": 3, "max_tokens": 256}
MIXUP_WEIGHT, MIXUP_ALPHA = 0.2, 0.5
"""SFTMix, arXiv 2410.05248."""
CONFIDENCE_CHECKPOINTS = 3


def known_rows(raw: Sequence[dict[str, Any]], truth: Sequence[Character], seed: int) -> dict[str, Dataset]:
    """The rows of the arms that need no distiller.

    Args:
        raw: The pool's rows with their code points, which the majority vote alone looks at.
        truth: The characters, for the gold arm alone.
        seed: Of the wording of both oracles.
    """
    rng = random.Random(seed)
    groups: dict[int, list[str]] = defaultdict(list)
    for row in sorted(raw, key=lambda row: row["id"]):
        groups[row["code_point"]].append(row["completion"])
    return {
        RAW: Dataset.from_list([{name: row[name] for name in ("prompt", "completion")} for row in raw]),
        GOLD: _oracle({one: one.facts for one in truth}, rng),
        MAJORITY: _oracle({one: votes(groups[one.code_point]) for one in truth}, rng),
    }


def arm_rows(pool: Pool, selected: dict[str, Dataset], seed: int) -> dict[str, Dataset]:
    """The rows of the other arms.

    Args:
        pool: The rated pool.
        selected: Selected rows of the distilled arm and of the two controls.
        seed: Of the random subset.
    """
    size = len(selected[DISTILLED])
    high = select(pool.high, min_score=None, embeddings=_of(pool, pool.high)).dataset
    return {
        "random": pool.rated.shuffle(seed=seed).select(range(min(size, len(pool.rated)))),
        "top-rated": select(pool.rated, size=size, min_score=None, embeddings=pool.embeddings).dataset,
        HIGH: merge(high, selected[DISTILLED]).dataset,
        **selected,
    }


def _of(pool: Pool, rows: Dataset) -> Any:
    place = {identifier: number for number, identifier in enumerate(pool.rated["id"][:])}
    return pool.embeddings[[place[identifier] for identifier in rows["id"][:]]]


def _oracle(facts: dict[Character, dict[str, str]], rng: random.Random) -> Dataset:
    rows = []
    for character, known in facts.items():
        completion = statement(known, rng.choice(list(BASES)))
        rows.append({"prompt": rng.choice(QUESTIONS).format(character.name), "completion": completion})
    return Dataset.from_list(rows)


def teach(
    arm: str,
    rows: Dataset,
    folder: Path,
    tokenizer: Any,
    truth: Sequence[Character],
    options: Any,
    seed: int,
    tokens: int | None = None,
) -> Curve:
    """Teach one student with the rows of an arm; without rows it is examined as it is."""
    total = tokens or options.student_tokens
    if not len(rows):
        return Student(folder, tokenizer, truth, options).finish()
    rng = random.Random(seed)
    plain = encoded(rows, tokenizer)
    if arm == MOSAIC:
        return Student(folder, tokenizer, truth, options).train(_mosaics(rows, tokenizer, seed, rng), total)
    if arm == SFTMIX:
        mixer = Mixer(plain, confidences(plain, folder, tokenizer, options, total, seed), seed)
        return Student(folder, tokenizer, truth, options).train(mixer.units(), total, mixer)
    return Student(folder, tokenizer, truth, options).train(endless(plain, rng), total)


def _mosaics(rows: Dataset, tokenizer: Any, seed: int, rng: random.Random) -> Iterator[Rows]:
    """A new pass of mosaics each time."""
    texts, number = rows.select_columns(["prompt", "completion"]), 0
    while True:
        examples, _ = build_mosaics(texts, tokenizer, MosaicConfig(seed=seed, **MOSAICS), epoch=number)
        found = encoded(examples, tokenizer)
        yield from ([row] for row in rng.sample(found, len(found)))
        number += 1


def confidences(plain: Rows, folder: Path, tokenizer: Any, options: Any, total: int, seed: int) -> list[float]:
    """Minus the mean perplexity of each row over some checkpoints of a reference run, a third of the budget long."""
    from hf_lmmixup.sftmix.confidence import ConfidenceRecord

    record = ConfidenceRecord()
    student = Student(folder, tokenizer, (), options)
    for checkpoint in range(CONFIDENCE_CHECKPOINTS):
        student.train(endless(plain, random.Random(seed + checkpoint)), total // (3 * CONFIDENCE_CHECKPOINTS))
        for number, (nll, tokens) in enumerate(student.nll(plain)):
            record.add(f"{number:06}", checkpoint, nll, tokens)
    table = {row["id"]: row["confidence"] for row in record.to_dataset()}
    return [table[f"{number:06}"] for number in range(len(plain))]


class Mixer:
    """SFTMix beside the ordinary loss, from the parts of `hf_lmmixup.sftmix` that its trainer is made of.

    Args:
        rows: The encoded rows; they get their number and half.
        confidence: Of each row.
        seed: Of pairs and shares.
    """

    def __init__(self, rows: Rows, confidence: Sequence[float], seed: int) -> None:
        from hf_lmmixup.sftmix.confidence import split_by_confidence

        self.halves, self.seed = split_by_confidence(confidence), seed
        self.rows = [{**row, "number": number, "half": half} for number, (row, half) in enumerate(self._with(rows))]

    def _with(self, rows: Rows) -> Iterator[tuple[dict[str, Any], int]]:
        return zip(rows, self.halves.tolist(), strict=True)

    def units(self) -> Iterator[Rows]:
        """Pairs of rows without end."""
        import numpy as np

        from hf_lmmixup.sftmix.pairing import pair_order

        epoch = 0
        while True:
            order = pair_order(self.halves, np.random.default_rng([self.seed, epoch])).tolist()
            yield from ([self.rows[number] for number in order[at : at + 2]] for at in range(0, len(order), 2))
            epoch += 1

    def loss(self, model: Any, hidden: Any, labels: Any, rows: Rows, step: int) -> Any:
        """The mixed loss with its weight, over the number of tokens with loss."""
        from hf_lmmixup.sftmix.mixed_loss import mixed_cross_entropy
        from hf_lmmixup.sftmix.pairing import (
            IGNORED,
            draw_mixture,
            mix_hidden_states,
            mixed_positions,
            pairs_in_batch,
        )

        places = pairs_in_batch([row["half"] for row in rows])
        pairs = [(rows[confident]["number"], rows[unconfident]["number"]) for confident, unconfident in places]
        positions = mixed_positions(labels, places, draw_mixture(MIXUP_ALPHA, self.seed, step, pairs))
        mixed = mixed_cross_entropy(
            mix_hidden_states(hidden, positions),
            model.lm_head.weight,
            None,
            positions.targets,
            positions.shares,
        )
        return MIXUP_WEIGHT * mixed / (labels[:, 1:] != IGNORED).sum()
