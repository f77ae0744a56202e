"""The student: a tiny model that knows how such questions are answered, and is then taught facts by one arm's data.

All arms start from the same weights, see the same number of tokens in steps of the same size, and are asked the same
questions in wordings that no training text has. Two kinds of answers count: the value that the model gives when the
name of the base is put before it ("probe", a form that every arm's rows have), and the facts in what it writes freely.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from benchmarks.proof.models import IGNORED, Learner, endless, padded, tiny_model, token_batches
from benchmarks.proof.world import BASES, HELD_OUT_QUESTIONS, Character, read_facts


PRETRAINING_RATE, RATE = 3e-3, 2e-3
PROBES = 512
"""Questions in one forward pass."""
LONGEST_ANSWER = 40

Rows = list[dict[str, Any]]


@dataclass
class Curve:
    """What a student knew on its way.

    Attributes:
        tokens: Tokens seen at each examination.
        accuracy: Share of right probes at each.
        right: The last probes (characters, bases, wordings), true where right.
        recall: The facts in free answers at the end (characters, bases).
        steps: Optimizer steps.
    """

    tokens: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    right: Any = None
    recall: Any = None
    steps: int = 0


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
        """The curve with the free answers."""
        if not self.curve.tokens:
            self.examine(0)
        if self.truth:
            self.curve.recall = self.free_answers()
        self.curve.steps = self.learner.steps
        return self.curve

    def examine(self, given: int) -> None:
        """Ask for every fact in every held-out wording and note which answers are right."""
        if not self.truth:
            return
        questions = [
            (character, base, wording) for character in self.truth for base in BASES for wording in HELD_OUT_QUESTIONS
        ]
        right: list[bool] = []
        for start in range(0, len(questions), PROBES):
            part = questions[start : start + PROBES]
            prompts = [f"{self._opening(wording, character)}{base}" for character, base, wording in part]
            answers = [self._value(character.facts[base]) for character, base, _ in part]
            right += [token == answer for token, answer in zip(self._next(prompts), answers, strict=True)]
        self.curve.right = np.array(right).reshape(len(self.truth), len(BASES), len(HELD_OUT_QUESTIONS))
        self.curve.tokens.append(given)
        self.curve.accuracy.append(float(self.curve.right.mean()))

    def free_answers(self) -> np.ndarray:
        """Which facts (characters, bases) stand rightly in a greedy answer to the first held-out wording."""
        import torch

        prompts = [self._opening(HELD_OUT_QUESTIONS[0], character) for character in self.truth]
        inputs = self.tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
        self.model.eval()
        with torch.inference_mode():
            written = self.model.generate(
                **{name: inputs[name] for name in ("input_ids", "attention_mask")},
                max_new_tokens=LONGEST_ANSWER,
                do_sample=False,
            )
        self.model.train()
        texts = self.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        told = [dict(reversed(list(read_facts(text)))) for text in texts]
        pairs = zip(self.truth, told, strict=True)
        return np.array([[facts.get(base) == one.facts[base] for base in BASES] for one, facts in pairs])

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

    def _value(self, value: str) -> int:
        (token,) = self.tokenizer(f" {value}", add_special_tokens=False)["input_ids"]
        return token

    def _next(self, prompts: Sequence[str]) -> list[int]:
        """The likeliest next token of each prompt."""
        import torch

        inputs = self.tokenizer(list(prompts), padding=True, add_special_tokens=False, return_tensors="pt")
        self.model.eval()
        mask = inputs["attention_mask"]
        with torch.inference_mode():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            output = self.model(
                input_ids=inputs["input_ids"], attention_mask=mask, position_ids=positions, logits_to_keep=1
            )
        self.model.train()
        return output.logits[:, -1].argmax(-1).tolist()
