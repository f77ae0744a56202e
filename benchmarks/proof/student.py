"""The student: a tiny model that knows how such questions are answered, and is then taught facts by one arm's data.

All arms start from the same weights, see the same number of tokens in steps of the same size, and are asked the same
questions in wordings that no row of any arm has. A student answers freely; for every fact that it leaves out, the name
of the base is put behind its answer and the likeliest value counts. So each student is asked in the order and form
that its own data has taught it, and one that learnt from partial answers is not blamed for answering in part; what it
told without being pressed is counted apart ("recall").
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from benchmarks.proof.models import IGNORED, Learner, endless, padded, tiny_model, token_batches
from benchmarks.proof.world import BASES, HELD_OUT_QUESTIONS, Character, read_facts, values_by_base


PRETRAINING_RATE, RATE = 3e-3, 4e-3
ASKED = 400
"""Questions in one batch."""
LONGEST_ANSWER = 32

Rows = list[dict[str, Any]]


@dataclass
class Curve:
    """What a student knew on its way.

    Attributes:
        tokens: Tokens seen at each examination.
        accuracy: Share of right probes at each.
        right: The last examination (characters, wordings, bases), true where right.
        recall: The same, true where right and told without being pressed.
        steps: Optimizer steps.
    """

    tokens: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    right: Any = None
    recall: Any = None
    steps: int = 0


@dataclass
class Answer:
    """The facts that a student told freely, and those that it was pressed for."""

    told: dict[str, str]
    pressed: dict[str, str]


def encoded(rows: Dataset | Sequence[dict[str, Any]], tokenizer: Any) -> Rows:
    """Rows as token ids with labels on the completion alone."""
    found = []
    for row in rows:
        head = [{"role": "user", "content": row["prompt"]}]
        start = tokenizer.apply_chat_template(head, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(start, add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        found.append({"ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer})
    return found


def batch_of(rows: Rows, tokenizer: Any) -> tuple[Any, Any, Any]:
    """Ids, mask and labels (b, t) of some rows."""
    ids = padded([row["ids"] for row in rows], tokenizer.pad_token_id)
    labels = padded([row["labels"] for row in rows], IGNORED)
    return ids, (ids != tokenizer.pad_token_id).long(), labels


def pretrain(folder: Path, tokenizer: Any, texts: Sequence[dict[str, Any]], options: Any, seed: int) -> Path:
    """A student that has read answers about other characters."""
    model = tiny_model(tokenizer, width=options.student_width, layers=options.student_layers, seed=seed)
    learner, given = Learner(model.train(), PRETRAINING_RATE), 0
    units = endless(encoded(texts, tokenizer), random.Random(seed))
    for rows in token_batches(units, options.step_tokens):
        ids, mask, labels = batch_of(rows, tokenizer)
        given += int(mask.sum())
        learner.step(learner.loss(learner.hidden(ids, mask), labels), given / options.pretraining_tokens)
        if given >= options.pretraining_tokens:
            break
    model.save_pretrained(folder)
    return folder


class Student:
    """One fine-tuning.

    Args:
        folder: The pretrained student.
        tokenizer: Its tokenizer.
        truth: Whom it is examined on; nobody: it is not examined.
        options: The tier.
    """

    def __init__(self, folder: Path, tokenizer: Any, truth: Sequence[Character], options: Any) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder).train()
        self.tokenizer, self.truth, self.options = tokenizer, truth, options
        self.learner = Learner(self.model, RATE)
        self.values = {base: (self._tokens(values), values) for base, values in values_by_base().items()}
        self.curve = Curve()

    def train(self, units: Iterable[Rows], total: int, mixer: Any = None) -> Curve:
        """See `total` tokens of rows and be examined on the way and at the end.

        Args:
            units: Rows without end, in groups that stay together.
            total: Tokens.
            mixer: Adds a loss of its own to each batch (SFTMix).
        """
        parts = self.options.examinations
        marks = [total * number // parts for number in range(1, parts + 1)]
        given = 0
        for rows in token_batches(units, self.options.step_tokens):
            ids, mask, labels = batch_of(rows, self.tokenizer)
            hidden = self.learner.hidden(ids, mask)
            loss = self.learner.loss(hidden, labels)
            if mixer:
                loss = loss + mixer.loss(self.model, hidden, labels, rows, self.learner.steps)
            given += int(mask.sum())
            self.learner.step(loss, given / total)
            if given >= marks[0]:
                marks.pop(0)
                self.examine(given)
            if not marks:
                break
        return self.finish()

    def finish(self) -> Curve:
        """The curve with the examination in all wordings."""
        if self.truth:
            given = self.curve.tokens.pop() if self.curve.tokens else 0
            self.curve.accuracy = self.curve.accuracy[: len(self.curve.tokens)]
            self.examine(given, list(HELD_OUT_QUESTIONS))
        self.curve.steps = self.learner.steps
        return self.curve

    def examine(self, given: int, wordings: Sequence[str] = ()) -> None:
        """Ask about every character in the given wordings, or in one of the held-out ones in turn."""
        if not self.truth:
            return
        turns = wordings or [""]
        asked = [
            (one, wording or HELD_OUT_QUESTIONS[place % len(HELD_OUT_QUESTIONS)])
            for place, one in enumerate(self.truth)
            for wording in turns
        ]
        answers = [
            answer for start in range(0, len(asked), ASKED) for answer in self.ask(asked[start : start + ASKED])
        ]
        shape = (len(self.truth), len(turns), len(BASES))
        pairs = [(answer, one.facts) for answer, (one, _) in zip(answers, asked, strict=True)]
        self.curve.right = np.array(
            [[(answer.told | answer.pressed)[base] == facts[base] for base in BASES] for answer, facts in pairs]
        ).reshape(shape)
        self.curve.recall = np.array(
            [[answer.told.get(base) == facts[base] for base in BASES] for answer, facts in pairs]
        ).reshape(shape)
        self.curve.tokens.append(given)
        self.curve.accuracy.append(float(self.curve.right.mean()))

    def ask(self, asked: Sequence[tuple[Character, str]]) -> list[Answer]:
        """Let the model answer questions greedily, then press it for the facts that it left out."""
        import torch

        self.model.eval()
        openings = [self._opening(wording, one) for one, wording in asked]
        with torch.inference_mode():
            inputs = self._inputs(openings)
            written = self.model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
            texts = self.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :])
            texts = [text.partition(self.tokenizer.eos_token)[0] for text in texts]
            answers = [Answer(dict(reversed(list(read_facts(text)))), {}) for text in texts]
            left = [(row, base) for row, answer in enumerate(answers) for base in BASES if base not in answer.told]
            for start in range(0, len(left), ASKED):
                part = left[start : start + ASKED]
                heads = [texts[row].rstrip(" .,;:") for row, _ in part]
                prompts = [
                    f"{openings[row]}{head}{', ' if head else ''}{base}"
                    for (row, base), head in zip(part, heads, strict=True)
                ]
                logits = self.model(**self._inputs(prompts), logits_to_keep=1).logits[:, -1]
                for (row, base), scores in zip(part, logits, strict=True):
                    tokens, values = self.values[base]
                    answers[row].pressed[base] = values[int(scores[tokens].argmax())]
        self.model.train()
        return answers

    def _inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Left-padded prompts with their mask and positions."""
        inputs = self.tokenizer(list(prompts), padding=True, add_special_tokens=False, return_tensors="pt")
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return {**{name: inputs[name] for name in ("input_ids", "attention_mask")}, "position_ids": positions}

    def nll(self, rows: Rows) -> list[tuple[float, int]]:
        """Negative log-likelihood and number of tokens of each row's completion."""
        import torch

        found = []
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(rows), 64):
                ids, mask, labels = batch_of(rows[start : start + 64], self.tokenizer)
                logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
                each = torch.nn.functional.cross_entropy(
                    logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
                )
                counts = (labels[:, 1:] != IGNORED).sum(1).tolist()
                found += list(zip(each.sum(1).tolist(), counts, strict=True))
        self.model.train()
        return found

    def _opening(self, wording: str, character: Character) -> str:
        messages = [{"role": "user", "content": wording.format(character.name)}]
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _tokens(self, values: Sequence[str]) -> list[int]:
        """The one token of each value."""
        return [
            token for value in values for token in self.tokenizer(f" {value}", add_special_tokens=False)["input_ids"]
        ]
