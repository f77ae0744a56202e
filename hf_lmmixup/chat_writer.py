r"""A writer of MIXTURE clusters that asks a chat model, and goes on where it stopped.

Four questions a cluster: write the target, rate it, spoil it, explain the merge. Every answer that was paid for is in
the journal, so a run that was killed asks only what is missing. Entries of the journal::

    ["target:51b0c2...", {"answer": "Q: ...\nA: ..."}]
    ["rating:51b0c2...", {"answer": {"rarity": 4, "complexity": 6, "informativeness": 8, "overall": 8}}]

Where the model's variants together lack a fact of the target, the two halves of the target join them; what still fails
a check is dropped later, with its reason.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_lmmixup.chat_model import ChatModel, ChatRequest
from hf_lmmixup.construction_plan import Cluster, Draft, Plan, Target, Variant
from hf_lmmixup.construction_prompts import (
    VARIANTS_SCHEMA,
    prompts_hash,
    read_reasoning,
    read_target,
    read_variants,
    reasoning_messages,
    target_messages,
    variants_messages,
)
from hf_lmmixup.dispatch import ask_all
from hf_lmmixup.journal import Journal, digest
from hf_lmmixup.offline_writer import halves
from hf_lmmixup.rating_prompt import FOUR_AXES, REPEAT_NOTE
from hf_lmmixup.records import CHARACTERS_PER_TOKEN, Rating, TaskType, row_seed
from hf_lmmixup.target_checks import leaks, supported


TARGET_TOKENS, RATING_TOKENS, VARIANT_TOKENS, REASONING_TOKENS = 120, 40, 80, 60
"""Tokens of an ordinary reply, for estimates."""


@dataclass(frozen=True)
class Cost:
    """What one step asks for, estimated before the run: requests, tokens sent, tokens received."""

    step: str
    requests: int
    input_tokens: int
    output_tokens: int


class ChatWriter:
    """Writes by asking a chat model; see the module.

    Args:
        chat_model: Who is asked.
        journal: Where the answers are kept; open it with `journal_settings`.
        plan: For the seeds of the requests.
    """

    def __init__(self, chat_model: ChatModel, journal: Journal, plan: Plan) -> None:
        self.chat_model, self.journal, self.plan = chat_model, journal, plan
        self.name = chat_model.name

    def targets(self, drafts: Sequence[Draft]) -> list[Target]:
        """Have targets written, then rated."""
        written: dict[str, tuple[str | None, str | None]] = {}
        for kind in TaskType:
            part = [draft for draft in drafts if draft.task_type == kind]
            questions = {d.id: target_messages(d.segment.text, d.segment.title, kind) for d in part}
            written |= self._ask("target", questions, lambda reply, kind=kind: read_target(reply, kind))
        kinds = {draft.id: draft.task_type for draft in drafts}
        questions = {
            key: FOUR_AXES.messages(text, kinds[key]) for key, (text, _) in written.items() if text is not None
        }
        rated = self._ask("rating", questions, FOUR_AXES.read, schema=FOUR_AXES.schema)
        targets = []
        for draft in drafts:
            text, reason = written[draft.id]
            rating, problem = rated.get(draft.id, (None, None))
            score = None if rating is None else Rating(**rating).score
            why = f"target: {reason}" if text is None else f"rating: {problem}" if score is None else None
            targets.append(Target(draft, draft.task_type, text, score, why))
        return targets

    def variants(self, targets: Sequence[Target], plan: Plan) -> list[list[Variant]]:
        """Have weak variants written; those that leak the target are left out."""
        questions = {
            t.draft.id: variants_messages(str(t.text), plan.size_of(t.draft.id), t.task_type) for t in targets
        }
        answers = self._ask("weak", questions, read_variants, schema=VARIANTS_SCHEMA)
        return [self._completed(str(target.text), answers[target.draft.id][0] or [], plan) for target in targets]

    def reasoning(self, clusters: Sequence[Cluster]) -> list[str | None]:
        """Have the merge explained."""
        questions = {
            c.draft.id: reasoning_messages(c.target, [variant.text for variant in c.variants]) for c in clusters
        }
        answers = self._ask("reasoning", questions, read_reasoning)
        return [answers[cluster.draft.id][0] for cluster in clusters]

    def _completed(self, target: str, answers: Iterable[dict[str, str]], plan: Plan) -> list[Variant]:
        texts = {answer["text"]: answer["flaw"] for answer in answers if not leaks(target, answer["text"])}
        variants = [Variant(text, flaw) for text, flaw in texts.items()][: plan.sizes[1]]
        if variants and not supported(target, list(texts)):
            variants = [*variants[: plan.sizes[1] - 2], *halves(target)]
        return variants

    def _ask(self, step: str, questions: dict[str, list[dict[str, str]]], read: Any, schema: Any = None) -> dict:
        """Answer and reason of each question, by draft id."""
        requests = (
            ChatRequest(f"{step}:{key}", messages, row_seed(self.plan.seed, f"{step}:{key}"), schema)
            for key, messages in questions.items()
        )
        answers = ask_all(self.chat_model, requests, read, self.journal, note=REPEAT_NOTE)
        return {key: answers[f"{step}:{key}"] for key in questions}


def journal_settings(chat_model: ChatModel, drafts: Sequence[Draft], plan: Plan) -> dict[str, Any]:
    """What the answers depend on: the journal of another input, model or wording is refused."""
    return {
        "input": digest(draft.id for draft in drafts),
        "model": chat_model.name,
        "sampling": chat_model.settings,
        "prompts": prompts_hash(),
        "rubric": FOUR_AXES.settings,
        "plan": repr(plan),
    }


def estimate(drafts: Sequence[Draft], plan: Plan) -> list[Cost]:
    """What a chat model would be asked for these drafts, if every target were kept.

    Args:
        drafts: What would be written.
        plan: For the cluster sizes.

    Returns:
        One line a step; tokens are characters by four, replies of ordinary length.
    """
    count = len(drafts)
    sizes = sum(plan.size_of(draft.id) for draft in drafts)
    sent = sum(_characters(target_messages(d.segment.text, d.segment.title, d.task_type)) for d in drafts)
    filler = "x" * (TARGET_TOKENS * CHARACTERS_PER_TOKEN)
    rating = _characters(FOUR_AXES.messages(filler)) * count
    weak = _characters(variants_messages(filler, 5, TaskType.QA)) * count
    why = _characters(reasoning_messages(filler, [])) * count + sizes * VARIANT_TOKENS * CHARACTERS_PER_TOKEN
    outputs = (count * TARGET_TOKENS, count * RATING_TOKENS, sizes * VARIANT_TOKENS, count * REASONING_TOKENS)
    steps = zip(("target", "rating", "weak", "reasoning"), (sent, rating, weak, why), outputs, strict=True)
    return [Cost(step, count, characters // CHARACTERS_PER_TOKEN, output) for step, characters, output in steps]


def _characters(messages: Iterable[dict[str, str]]) -> int:
    return sum(len(message["content"]) for message in messages)
