"""Every prompt text of the package and the parser of what comes back.

The same form is used in training, in reinforcement learning and in distillation: a system message, then one user
message with the cluster, the task's instruction and a skeleton of the completion. A completion looks like this::

    <think>Both pairs ask about tides; the second adds the Moon.</think>
    <answer>Q: What causes tides?
    A: Mostly the Moon's pull on the oceans.</answer>

Parsers scan with `str.find` and `str.count` only. Regular expressions that backtrack hang on hostile model output, so
none is used on it: time grows linearly with the text.
"""

import hashlib
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from hf_lmmixup.records import Distillation, TaskType, quoted


THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
TAGS = THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE

Messages = Sequence[dict[str, str]]
"""A conversation: `role` and `content` of each message."""

SYSTEM_PROMPT = (
    "You merge several weak texts into one excellent text that keeps every fact they support and adds none."
)

TASK_INSTRUCTIONS = {
    TaskType.QA: "Merge the question-answer pairs above into one pair.",
    TaskType.MCQ: "Merge the multiple-choice items above into one item.",
    TaskType.TFQ: "Merge the true-or-false items above into one item.",
    TaskType.CS: "Merge the category notes above into one statement.",
    TaskType.PARA: "Merge the passages above into one coherent paragraph.",
}
"""One instruction per task type, in the order in which `TaskType` lists them."""

SKELETONS = {
    TaskType.QA: "Q: question\nA: answer",
    TaskType.MCQ: "Q: question\nA) option\nB) option\nC) option\nD) option\nAnswer: right letter) option. Why.",
    TaskType.TFQ: "Statement: claim\nAnswer: True or False. Why.",
    TaskType.CS: "C: category\nS: statement",
    TaskType.PARA: "paragraph",
}
"""The form of an answer as the prompt shows it: at the end, where models of any size follow it best."""

ANSWER_LABELS = {
    TaskType.QA: ("Q:", "\nA:"),
    TaskType.MCQ: ("Q:", "\nA)", "\nB)", "\nC)", "\nD)", "\nAnswer:"),
    TaskType.TFQ: ("Statement:", "\nAnswer:"),
    TaskType.CS: ("C:", "\nS:"),
    TaskType.PARA: (),
}
"""The labels of an answer, in order: the first opens the text, each other one opens a line, each holds some text."""


def linearize(texts: Sequence[str]) -> str:
    """Join the members of a cluster into one text, separated by blank lines (`Linearize` in arXiv 2510.20449)."""
    return "\n\n".join(text.strip() for text in texts)


def distillation_messages(texts: Sequence[str], task_type: TaskType | str = TaskType.QA) -> list[dict[str, str]]:
    """The prompt of the distiller for one cluster: a system and a user message.

    Args:
        texts: The cluster's members, one text each.
        task_type: Which form the merged text shall have.

    Returns:
        Two messages with the keys `role` and `content`.

    Raises:
        ValueError: If `texts` is empty or the task type is unknown.
    """
    if not texts:
        raise ValueError("A distillation prompt needs at least one text; the cluster is empty.")
    user = f"{linearize(texts)}\n\n{_request(task_type)}"
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": user}]


@cache
def labels_of(task_type: TaskType | str) -> tuple[str, ...]:
    """The `ANSWER_LABELS` of a task type; asked for with each answer.

    Raises:
        ValueError: If the task type is unknown.
    """
    return ANSWER_LABELS[TaskType(task_type)]


@cache
def _request(task_type: TaskType | str) -> str:
    kind = TaskType(task_type)
    form = format_completion("what the texts share and what to repair", SKELETONS[kind])
    return f"{TASK_INSTRUCTIONS[kind]} Write in this form:\n{form}"


def prompt_room(positions: int | None, max_new_tokens: int, max_prompt_tokens: int | None = None) -> int:
    """How many tokens a prompt may have beside a completion.

    Args:
        positions: Those of the model; `None` for a model without a limit.
        max_new_tokens: Longest completion.
        max_prompt_tokens: Longest prompt, if there is another limit.

    Raises:
        ValueError: If the completion leaves no room.
    """
    room = (positions or 1 << 30) - max_new_tokens
    if room < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} leaves no room for a prompt in {positions} positions.")
    return room if max_prompt_tokens is None else min(max_prompt_tokens, room)


def render(tokenizer: Any, messages: Messages) -> str:
    """A prompt as a model reads it: the messages in its chat template, up to where its reply begins.

    What a row says is text and no control token: a row that spells one, such as `<|im_end|>`, would end its own turn
    and open another one. Such spellings get a space behind their first character, `< |im_end|>`.

    Args:
        tokenizer: Of `transformers`, with a chat template.
        messages: With the keys `role` and `content`.

    Returns:
        The text.

    Raises:
        ValueError: If the template does not take such messages; some know no system message.
    """
    from jinja2 import TemplateError

    plain = [{**message, "content": _without_controls(tokenizer, message.get("content"))} for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise ValueError(
            f"The chat template of {tokenizer.name_or_path!r} does not take these messages: {error}. The distiller's "
            "prompts are a system and a user message. Take another model, or a template that takes both."
        ) from error
    # Templates of models that think may open the reasoning, which the completion would then lack.
    opened = text.rstrip()
    return opened.removesuffix(THINK_OPEN) if opened.endswith(THINK_OPEN) else text


def prompt_tokens(tokenizer: Any, messages: Messages) -> list[int]:
    """A prompt as a model reads it, in tokens; see `render`."""
    return list(tokenizer(render(tokenizer, messages), add_special_tokens=False)["input_ids"])


def _without_controls(tokenizer: Any, text: Any) -> Any:
    """A text in which no control token of a tokenizer is spelled; most texts are as they were."""
    for control in _controls(tokenizer) if isinstance(text, str) else ():
        while control in text:
            text = text.replace(control, f"{control[0]} {control[1:]}")
    return text


@lru_cache(maxsize=8)
def _controls(tokenizer: Any) -> tuple[str, ...]:
    """The spellings of a tokenizer's special tokens, longest first; our tags, which some make special, are text.

    One that has a space in the second place would still be there with another space.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {token.content for token in added if token.special}
    spelled = {text for text in special if len(text) > 1 and not text[1].isspace()}
    return tuple(sorted(spelled.difference(TAGS), key=lambda name: (-len(name), name)))


def prompt_hash(messages: Messages) -> str:
    """The first 16 hex digits of the SHA-256 of a message list, as JSON with sorted keys: the lineage key of a row."""
    parts = (b'{"content": %b, "role": %b}' % (quoted(one["content"]), quoted(one["role"])) for one in messages)
    return hashlib.sha256(b"[%b]" % b", ".join(parts)).hexdigest()[:16]


def format_completion(reasoning: str, answer: str) -> str:
    """The completion that the distiller is trained to write; the inverse of `parse_completion`."""
    return f"{THINK_OPEN}{reasoning.strip()}{THINK_CLOSE}\n{ANSWER_OPEN}{answer.strip()}{ANSWER_CLOSE}"


def until_answer_ends(text: str) -> str:
    """A completion without what a model adds after `</answer>`."""
    head, close, _ = text.partition(ANSWER_CLOSE)
    return (head + close).strip()


def parse_completion(text: str) -> Distillation | None:
    """Read a completion strictly: exactly one `<think>` and one `<answer>`, both non-empty, nothing else around them.

    Args:
        text: What the distiller wrote.

    Returns:
        The reasoning and the answer, stripped; `None` if the structure is broken in any way.
    """
    if {text.count(tag) for tag in TAGS} != {1}:
        return None
    stripped = text.strip()
    if not stripped.startswith(THINK_OPEN) or not stripped.endswith(ANSWER_CLOSE):
        return None
    think, closed, rest = stripped[len(THINK_OPEN) :].partition(THINK_CLOSE)
    gap, opened, tail = rest.partition(ANSWER_OPEN)
    reasoning, answer = think.strip(), tail[: -len(ANSWER_CLOSE)].strip()
    if not closed or not opened or gap.strip() or ANSWER_OPEN in think or not reasoning or not answer:
        return None
    return Distillation(reasoning=reasoning, answer=answer)


def answer_matches(answer: str, task_type: TaskType | str) -> bool:
    """Whether an answer has the form of its task type: every label once, in order, opening a line, words after it.

    Args:
        answer: The text inside `<answer>`.
        task_type: Which labels to expect; a paragraph has none and must not carry those of the others.

    Returns:
        True if the form is right.
    """
    labels = labels_of(task_type)
    body = answer.strip()
    if not labels:
        return bool(body) and not body.startswith(("Q:", "C:", "Statement:"))
    return all(has_words(part) for part in _fields(body, labels))


def split_pair(answer: str) -> tuple[str, str] | None:
    """Read a question-answer pair back from a distilled answer.

    Returns:
        The prompt and the completion, or `None` if the answer has not the form `Q: ... A: ...`.
    """
    parts = _fields(answer.strip(), ANSWER_LABELS[TaskType.QA])
    if not all(has_words(part) for part in parts):
        return None
    return parts[0], parts[1]


def has_words(text: str) -> bool:
    """Whether there is at least one letter or digit in the text."""
    return any(map(str.isalnum, text))


def _fields(body: str, labels: Sequence[str]) -> list[str]:
    """The texts after each label, or one empty string if a label is missing, doubled or out of order."""
    text = rest = f"\n{body}"
    fields = []
    for label in labels:
        opening = label if label.startswith("\n") else f"\n{label}"
        field, found, rest = rest.partition(opening)
        if not found or text.count(opening) > 1:
            return [""]
        fields.append(field)
    return [""] if fields[0] else [field.strip() for field in (*fields[1:], rest)]
