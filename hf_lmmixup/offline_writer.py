r"""A writer of MIXTURE clusters without a model: targets are cut from the text, variants are corrupted, both by rule.

What it makes is plainer than what a chat model writes, but every fact in it is the source's. One target of each form::

    Q: What should one know about json.dumps?\nA: Serialize obj to a JSON formatted str. ...
    C: json.dumps\nS: Serialize obj to a JSON formatted str. ...
    Statement: This describes json.loads: Serialize obj ...\nAnswer: False. It describes json.dumps. ...

The first two variants of a target always hold one end of it each, so that together they hold all of it.
"""

from collections.abc import Callable, Sequence

from hf_lmmixup.construction_plan import Cluster, Draft, Plan, Target, Variant, draw
from hf_lmmixup.corruption import corrupt, truncate
from hf_lmmixup.facts import extract_facts
from hf_lmmixup.prompts import answer_matches
from hf_lmmixup.records import TaskType, row_seed
from hf_lmmixup.target_checks import leaks
from hf_lmmixup.wording import split_form, split_sentences


MAX_TARGET_WORDS = 90
MAX_OPTION_WORDS = 30

HALF = 0.55
"""Share of a target that each of its first two variants holds; both together overlap by a tenth."""

DEGRADATIONS = ("typos", "missing reasoning", "vague wording", "truncation")
"""Corruptions in use. Cross-topic merging is left to the fusion step, which knows the other targets."""

QUESTIONS = ("What should one know about {}?", "What is important about {}?", "How can {} be described?")

NOTES = {
    "truncation": ("{} breaks off early", "{} holds only a part of it", "the rest of {} is cut away"),
    "typos": ("{} is misspelt", "spelling slips in {}", "{} needed its spelling put right"),
    "vague wording": ("{} is vague", "{} names nothing exactly", "{} hides the terms behind empty words"),
    "missing reasoning": ("{} gives no explanation", "the details are missing from {}", "{} stops at the bare claim"),
    "cross-topic merging": (
        "{} drifts to another subject",
        "a stray topic got into {}",
        "{} mixes in what is foreign",
    ),
}
"""Ways to say what is wrong with some variants, by flaw."""

FRAMES = (
    "All variants speak of {topic}: {flaws}. Joined, they give the whole back without repetition.",
    "About {topic}: {flaws}. What one variant lacks stands in another, so nothing had to be added.",
    "The subject is {topic}; {flaws}. Each fact is kept once, in the order in which it makes sense.",
)


class OfflineWriter:
    """Writes by rule; see the module. It keeps no state and draws nothing but from ids."""

    name = "extraction and corruption by rule"

    def targets(self, drafts: Sequence[Draft]) -> list[Target]:
        """Cut one target from each segment and score it by rule."""
        written = []
        for draft in drafts:
            text = FORMS[draft.task_type](draft)
            kind = draft.task_type if answer_matches(text, draft.task_type) else TaskType.QA
            written.append(Target(draft, kind, text, extractive_score(text)))
        return written

    def variants(self, targets: Sequence[Target], plan: Plan) -> list[list[Variant]]:
        """Corrupt each target; see `Writer.variants`."""
        return [_corrupted(str(target.text), target.draft.id, plan) for target in targets]

    def reasoning(self, clusters: Sequence[Cluster]) -> list[str | None]:
        """Say which variants have which flaw."""
        return [_note(cluster) for cluster in clusters]


def halves(target: str) -> list[Variant]:
    """Two variants that hold one end of the target each, overlap in the middle, and together lack nothing."""
    head, body = split_form(target)
    parts = [truncate(body, seed=0, keep=HALF, jitter=0.0, side=side) for side in ("end", "start")]
    return [Variant(head + part, "truncation") for part in parts]


def extractive_score(text: str) -> int:
    """Score a target cut from a text: 1, and one each for 25 words, two sentences, a hard fact, and a proper end.

    Returns:
        1 to 5; a target that lacks two of the four stays below 4 and is dropped.
    """
    body = split_form(text)[1]
    signs = (
        len(text.split()) >= 25,
        len(split_sentences(body)) >= 2,
        bool(extract_facts(body).hard),
        body.endswith((".", "!", "?", ")")),
    )
    return 1 + sum(signs)


def _corrupted(target: str, identifier: str, plan: Plan) -> list[Variant]:
    variants = halves(target)
    size = plan.size_of(identifier)
    for attempt in range(3 * size):
        if len(variants) >= size:
            break
        seed = row_seed(plan.seed + attempt, identifier)
        flaw = DEGRADATIONS[(attempt + row_seed(plan.seed, identifier)) % len(DEGRADATIONS)]
        text = corrupt(target, flaw, seed=seed)
        if not leaks(target, text) and text not in {target, *(variant.text for variant in variants)}:
            variants.append(Variant(text, flaw))
    return variants


def _note(cluster: Cluster) -> str:
    places: dict[str, list[int]] = {}
    for number, variant in enumerate(cluster.variants, 1):
        places.setdefault(variant.flaw, []).append(number)
    chance = draw(0, cluster.draft.id)
    parts = []
    for flaw, numbers in places.items():
        phrases = NOTES[flaw]
        which = f"variant {numbers[0]}" if len(numbers) == 1 else f"each of variants {_listed(numbers)}"
        parts.append(phrases[int(chance * 1000 + numbers[0]) % len(phrases)].format(which))
    return FRAMES[int(chance * len(FRAMES))].format(topic=cluster.draft.segment.title, flaws=", ".join(parts))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"


def _shortened(text: str) -> str:
    """The first sentences of a text, up to `MAX_TARGET_WORDS` words, one at least."""
    kept: list[str] = []
    for sentence in split_sentences(text):
        if kept and len(" ".join([*kept, sentence]).split()) > MAX_TARGET_WORDS:
            break
        kept.append(sentence)
    return " ".join(kept)


def _question(draft: Draft) -> str:
    phrase = QUESTIONS[int(draw(0, draft.id) * len(QUESTIONS))]
    return f"Q: {phrase.format(draft.segment.title)}\nA: {_shortened(draft.segment.text)}"


def _choice(draft: Draft) -> str:
    first, *rest = split_sentences(_shortened(draft.segment.text))
    wrong = [split_sentences(sibling.text)[0] for sibling in draft.siblings]
    if len({first, *wrong}) < 4 or any(len(option.split()) > MAX_OPTION_WORDS for option in (first, *wrong)):
        return _question(draft)
    place = int(draw(0, draft.id) * 4)
    options = [*wrong[:place], first, *wrong[place:]]
    lines = [f"{letter}) {option}" for letter, option in zip("ABCD", options, strict=True)]
    why = " ".join([f"It describes {draft.segment.title}.", *rest])
    return "\n".join(
        [f"Q: Which of these describes {draft.segment.title}?", *lines, f"Answer: {lines[place].rstrip('.')}. {why}"]
    )


def _statement(draft: Draft) -> str:
    first, *rest = split_sentences(_shortened(draft.segment.text))
    right = draft.segment.title
    false = bool(draft.siblings) and draw(1, draft.id) < 0.5 and split_sentences(draft.siblings[0].text)[0] != first
    name = draft.siblings[0].title if false else right
    verdict = "False" if false else "True"
    return (
        f"Statement: This describes {name}: {first}\nAnswer: {verdict}. {' '.join([f'It describes {right}.', *rest])}"
    )


def _category(draft: Draft) -> str:
    return f"C: {draft.segment.title}\nS: {_shortened(draft.segment.text)}"


def _paragraph(draft: Draft) -> str:
    return _shortened(draft.segment.text)


FORMS: dict[TaskType, Callable[[Draft], str]] = {
    TaskType.QA: _question,
    TaskType.MCQ: _choice,
    TaskType.TFQ: _statement,
    TaskType.CS: _category,
    TaskType.PARA: _paragraph,
}
"""How a target of each type is cut. A multiple-choice item that lacks three short siblings becomes a question."""
