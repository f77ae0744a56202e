"""The text of a mosaic, and the way back from the text to the answers it holds.

A mosaic of three rows with the layout number="({n})", open="<<", close=">>", answered in reverse order::

    There are 3 unrelated tasks here. Treat each one on its own. Answer from the last task back to the first.

    (1) Why is the sky blue?
    (2) Name a prime.
    (3) Translate: chat

    (3) <<cat>>

    (2) <<7>>

    (1) <<Scattering.>>

Every mosaic is read back as soon as it is written. If an answer holds one of the marks, or looks like the start of the
next one, another layout of at most the same size is tried, until what is read back is what was written. If all of
them occur in the answers, a row of equals signs longer than any in the answers tells them apart.
"""

import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from hf_lmmixup.mosaic_costs import SEPARATORS, TemplateCosts
from hf_lmmixup.mosaic_plan import MosaicPlan
from hf_lmmixup.mosaic_rows import Item
from hf_lmmixup.mosaic_templates import PLACEHOLDERS, Templates


class Layout(NamedTuple):
    """How answers are told apart.

    Attributes:
        number: What stands before an answer, `{n}` being the number of its task; empty for nothing.
        open: The mark before an answer, or empty.
        close: The mark after it, or empty.
        separator: What stands between two answers.
    """

    number: str
    open: str
    close: str
    separator: str

    def join(self, answers: Sequence[str], order: Sequence[int]) -> str:
        """Write answers; `order` holds their numbers."""
        return _interleave(self._joints(order), answers, self.close)

    def split(self, text: str, order: Sequence[int]) -> list[str] | None:
        """Read answers back; `None` if the text is not what `join` writes for these numbers."""
        joints = self._joints(order)
        if not text.startswith(joints[0]) or not text.endswith(self.close):
            return None
        start, answers = len(joints[0]), []
        for joint in joints[1:]:
            end = text.find(joint, start)
            if end < 0:
                return None
            answers.append(text[start:end])
            start = end + len(joint)
        answers.append(text[start : len(text) - len(self.close)])
        return answers if start + len(self.close) <= len(text) else None

    def write(self, answers: Sequence[str], order: Sequence[int]) -> str | None:
        """`join`, if `split` finds exactly these answers in it and every mark stands once around each; else `None`."""
        joints = self._joints(order)
        text = _interleave(joints, answers, self.close)
        if self.open and not text.count(self.open) == text.count(self.close) == len(answers):
            return None
        start = len(joints[0])
        for answer, joint in zip(answers, joints[1:], strict=False):
            end = start + len(answer)
            if text.find(joint, start) != end:  # `split` would cut elsewhere
                return None
            start = end + len(joint)
        return text

    def ask(self, tasks: Sequence[str], numbers: Sequence[int], gap: str, before: str, after: str) -> str:
        """Write tasks with their numbers and `gap` in between, something before and something after."""
        known = _marks(gap, self.number, "", max(numbers) | 15)
        marks = [known[number] for number in numbers]
        marks[0] = before + marks[0][len(gap) :]
        return _interleave(marks, tasks, after)

    def _joints(self, order: Sequence[int]) -> list[str]:
        """All that stands before each answer, the end of the answer before it included."""
        between = self.close + self.separator
        known = _marks(between, self.number, self.open, max(order) | 15)
        joints = [known[number] for number in order]
        joints[0] = joints[0][len(between) :]
        return joints


@lru_cache(maxsize=4096)
def _naming(sentence: str, layout: Layout) -> str:
    """A sentence that names the marks."""
    return sentence.format(open=layout.open.strip(), close=layout.close.strip())


@lru_cache(maxsize=4096)
def _marks(between: str, number: str, opening: str, most: int) -> list[str]:
    """What stands between two texts, by the number of the second from 0 to `most`."""
    return [between + number.replace("{n}", str(n)) + opening for n in range(most + 1)]


def _interleave(marks: Sequence[str], texts: Sequence[str], end: str = "") -> str:
    """Mark, text, mark, text ... end: each text is copied once."""
    pieces = [end] * (2 * len(texts) + 1)
    pieces[:-1:2], pieces[1::2] = marks, texts
    return "".join(pieces)


class Written(NamedTuple):
    """The text of a mosaic and how to read it.

    Attributes:
        users: What is asked, turn by turn.
        assistants: The answers, turn by turn.
        method: The order or the way of masking that was used, else empty.
        order: Numbers of the answered tasks in the order of the answers.
        layout: How the answers are told apart.
    """

    users: tuple[str, ...]
    assistants: tuple[str, ...]
    method: str
    order: list[int]
    layout: Layout


def answer_order(method: str, tasks: Sequence[str], seed: float) -> list[int]:
    """Places of all tasks in the order that a permuting instruction asks for; ties go to the lower place.

    Args:
        method: One of `ORDERS`.
        tasks: The instructions of the first turn.
        seed: Number in [0, 1) that decides a `given` order.
    """
    places = list(range(len(tasks)))
    if method == "given":
        random.Random(int(seed * 2**53)).shuffle(places)
    elif method == "reverse":
        places.reverse()
    elif method in ("odd_then_even", "even_then_odd"):
        halves = places[::2], places[1::2]  # the number of place 0 is 1
        places = halves[0] + halves[1] if method == "odd_then_even" else halves[1] + halves[0]
    else:
        keys = [_KEYS[method.split("_")[-1]](task) for task in tasks]
        descending = method.startswith(("most", "reverse"))
        places.sort(key=keys.__getitem__, reverse=descending)  # stable both ways
    return places


def first_letter(text: str) -> str:
    """The first letter of a text, without case and accents: what the alphabetical orders compare; empty if none."""
    letter = text[:1]
    if not letter.isalpha():
        letter = next((character for character in text if character.isalpha()), "")
    if letter.isascii():
        return letter.lower()
    return unicodedata.normalize("NFKD", letter).casefold()[:1]


_KEYS: dict[str, Callable[[str], Any]] = {
    "alphabetical": first_letter,
    "words": lambda task: len(task.split()),
    "characters": len,
}


def _fence(plan: MosaicPlan, turns: Sequence[Sequence[str]]) -> Layout:
    """A layout that no answer can hold, because its row of equals signs is longer than any of theirs."""
    bar = "==="
    while any(bar in answer for answers in turns for answer in answers):
        bar += "="
    return (
        Layout("", "", "", f"\n\n{bar}\n\n")
        if plan.strategy == "primary"
        else Layout(f"{bar}{{n}}{bar} ", "", "", "\n\n")
    )


class MosaicWriter:
    """Turns plans into text.

    Args:
        templates: Sentences and marks.
        costs: Their tokens, to choose a replacement of at most the same size.
    """

    def __init__(self, templates: Templates, costs: TemplateCosts) -> None:
        self.templates, self.costs = templates, costs
        self._known: dict[tuple[int, int, str], Layout] = {}
        self._phrases = {
            kind: phrasings if PLACEHOLDERS[kind] else tuple(phrase.format() for phrase in phrasings)
            for kind, phrasings in templates.phrases.items()
        }

    def write(self, plan: MosaicPlan, items: Sequence[Item]) -> Written:
        """Write one mosaic.

        Args:
            plan: Strategy, skipped places and random numbers.
            items: Its rows, two or more, in the order of `plan.rows`.

        Returns:
            The texts; reading `assistants` with `layout` gives the answers of `order` back exactly.
        """
        if plan.method.endswith("alphabetical") and not all(first_letter(item.users[0]) for item in items):
            plan = replace(plan, method="reverse")  # a task without letters has no place in an alphabet
        order = self._order(plan, items)
        answered = [items[number - 1].assistants for number in order]
        turns = [[answers[turn] for answers in answered] for turn in range(len(items[0].users))]
        layout = self._layout(plan, plan.number, plan.wrapper)
        written = [layout.write(answers, order) for answers in turns]
        if None in written:
            layout = self._other_layout(plan, turns, order)
            written = [layout.join(answers, order) for answers in turns]
        users = [self._prompt(plan, items, order, layout, turn) for turn in range(len(turns))]
        return Written(tuple(users), tuple(written), plan.method, order, layout)  # type: ignore[arg-type]

    def _order(self, plan: MosaicPlan, items: Sequence[Item]) -> list[int]:
        if plan.strategy == "permute":
            places = answer_order(plan.method, [item.users[0] for item in items], plan.draws.shuffle)
            return [place + 1 for place in places]
        if not plan.masked:
            return list(range(1, len(items) + 1))
        return [place + 1 for place in range(len(items)) if place not in plan.masked]

    def _other_layout(self, plan: MosaicPlan, turns: Sequence[Sequence[str]], order: list[int]) -> Layout:
        """The first layout of at most the planned size whose marks no answer holds."""
        for layout in self._layouts(plan):
            if all(layout.write(answers, order) is not None for answers in turns):
                return layout
        return _fence(plan, turns)

    def _layouts(self, plan: MosaicPlan) -> Iterator[Layout]:
        if plan.strategy == "primary":
            yield from (Layout("", "", "", separator) for separator in SEPARATORS[1:])
            return
        budget = self.costs.item(plan.number, plan.wrapper)
        if plan.wrapper >= 0:
            for step in range(1, len(self.templates.wrappers)):
                wrapper = (plan.wrapper + step) % len(self.templates.wrappers)
                if self.costs.item(plan.number, wrapper) <= budget:
                    yield self._layout(plan, plan.number, wrapper)
        for number in range(len(self.templates.numbers)):
            if self.costs.item(number, -1) <= budget:
                yield self._layout(plan, number, -1)

    def _layout(self, plan: MosaicPlan, number: int, wrapper: int) -> Layout:
        key = number, wrapper, "\n" if plan.draws.number_gap < 0.5 else " "
        if (known := self._known.get(key)) is None:
            opening, closing = self.templates.wrappers[wrapper] if wrapper >= 0 else ("", "")
            numbering = self.templates.numbers[number] + key[2] if number >= 0 else ""
            known = self._known[key] = Layout(numbering, opening, closing, SEPARATORS[0])
        return known

    def _prompt(self, plan: MosaicPlan, items: Sequence[Item], order: list[int], layout: Layout, turn: int) -> str:
        """What is asked in one turn; skipped rows take no part in later turns."""
        numbers = sorted(order) if turn else range(1, len(items) + 1)
        tasks = [items[number - 1].users[turn] for number in numbers]
        gap = "\n" if plan.draws.task_gap < 0.5 else "\n\n"
        sentences = "" if plan.strategy == "primary" else self._sentences(plan, len(items), order, layout, turn)
        if not sentences:
            return layout.ask(tasks, numbers, gap, "", "")
        between = "\n" if plan.draws.sentence_gap < 0.5 else "\n\n"
        if plan.draws.sentences_last < 0.5:
            return layout.ask(tasks, numbers, gap, "", between + sentences)
        return layout.ask(tasks, numbers, gap, sentences + between, "")

    def _sentences(self, plan: MosaicPlan, items: int, order: list[int], layout: Layout, turn: int) -> str:
        """The meta-instructions of one turn, filled in."""
        if turn:
            return self._pick("again", plan.draws.again)
        sentences = []
        for kind, draw in plan.sentences(wrapped=bool(layout.open)):
            sentence = self._pick(kind, draw)
            if kind == "intro":
                sentence = sentence.format(count=items)
            elif kind == "wrapped":
                sentence = _naming(sentence, layout)
            elif PLACEHOLDERS[kind]:
                sentence = sentence.format(count=len(plan.masked), sequence=self._listed(plan, order))
            sentences.append(sentence)
        return " ".join(sentences)

    def _listed(self, plan: MosaicPlan, order: list[int]) -> str:
        """The numbers that a sentence names: the skipped ones, or all in their order."""
        separator = self.templates.sequences[int(plan.draws.sequence * len(self.templates.sequences))]
        return separator.join(map(str, [place + 1 for place in plan.masked] or order))

    def _pick(self, kind: str, draw: float) -> str:
        phrasings = self._phrases[kind]
        return phrasings[int(draw * len(phrasings))]
