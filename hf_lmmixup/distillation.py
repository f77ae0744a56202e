"""Clusters of weak pairs in, one excellent pair for each out.

Whatever writes the text is a function from conversations to completions, so this stage knows no model: a trained
distiller, an instruct model with the same prompt (the training-free mode) and a served one are used alike. It builds
the prompts, splits clusters that do not fit, reads the completions strictly, asks again with another seed where one is
malformed, and says of every row that leaves why. One exchange::

    distill(clustered, LocalGenerator("quickstart/distiller").generate, distiller_name="quickstart/distiller")
    distill(clustered, LocalGenerator("Qwen/Qwen2.5-7B-Instruct").generate, distiller_name="Qwen/Qwen2.5-7B-Instruct")

Source: the downstream job of arXiv 2510.20449, without its silent truncation and its loss of unparsable rows.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa
from datasets import Dataset

from hf_lmmixup.bounds import DISTILLER, check
from hf_lmmixup.distilled_rows import (
    Distilled,
    DistilledOutcome,
    clusters_of,
    completions_of,
    distilled_dataset,
    source_text,
)
from hf_lmmixup.journal import Journal
from hf_lmmixup.prompts import answer_matches, distillation_messages, parse_completion, prompt_hash
from hf_lmmixup.records import Distillation, TaskType, row_seed
from hf_lmmixup.tables import dataset_of


logger = logging.getLogger(__name__)

ATTEMPTS = 2
"""How often a cluster is asked for: once greedily, then sampled with a new seed each time."""

PROMPTS_AT_A_TIME = 8192
"""Prompts that a generator gets at a time: many times what a device writes together, few enough to hold."""

TOO_LONG = "distill: longer than the model's window"
NO_COMPLETION = "distill: no completion"
MALFORMED = "distill: malformed completion"
WRONG_FORM = "distill: answer has not the form of its task"

Messages = list[dict[str, str]]


class Generate(Protocol):
    """What writes completions: `LocalGenerator.generate`, or any function of this form."""

    def __call__(
        self,
        conversations: Sequence[Messages],
        *,
        seeds: Sequence[int] | None = None,
        on_reply: Callable[[int, str | None], None] | None = None,
    ) -> Sequence[str | None]:
        """One completion a conversation, greedy without seeds; `None` where there is none.

        `on_reply(place, completion)` is called as soon as each one is done, in any order.
        """
        ...


@dataclass
class _Request:
    """One prompt: a cluster, or a part of one that is too long for the model."""

    rows: list[dict[str, Any]]
    messages: Messages
    hash: str
    distillation: Distillation | None = None

    @property
    def sources(self) -> list[str]:
        return [row["id"] for row in self.rows]


def distill(
    clustered: Dataset,
    generate: Generate,
    *,
    distiller_name: str,
    task_type: TaskType | str = TaskType.QA,
    max_prompt_tokens: int | None = None,
    count_tokens: Callable[[Messages], int] | None = None,
    attempts: int = ATTEMPTS,
    seed: int = 0,
    journal: Journal | None = None,
    at_a_time: int = PROMPTS_AT_A_TIME,
    texts: Dataset | None = None,
) -> DistilledOutcome:
    """Distil every cluster into one row.

    Args:
        clustered: Rows with `id`, `prompt`, `completion` and `cluster_id`; `score` if there is one.
        generate: What writes the completions.
        distiller_name: Its name, for lineage.
        task_type: The form of the distilled text.
        max_prompt_tokens: Longest prompt; a longer cluster is split into parts that fit, in order of row id.
        count_tokens: Length of a prompt in tokens, such as `LocalGenerator.count_tokens`.
        attempts: How often a cluster is asked for.
        seed: Seed of the later attempts.
        journal: Where completions are recorded as they come; those already there are not asked for again.
        at_a_time: Prompts that `generate` gets at a time.
        texts: Rows with `id`, `prompt` and `completion`, if those of `clustered` have no texts.

    Returns:
        Rows with the columns of `records.DISTILLED`, by cluster; for every source row that is in none of them the
        reason; and all completions. The order of the input rows has no influence.

    Raises:
        ValueError: If `max_prompt_tokens` comes without `count_tokens`, `attempts` is below 1, or a score is no whole
            number.
    """
    if max_prompt_tokens is not None and count_tokens is None:
        raise ValueError(f"max_prompt_tokens={max_prompt_tokens} needs count_tokens to measure prompts with.")
    check(DISTILLER, {"attempts": attempts})
    task_type = TaskType(task_type)
    dropped: dict[str, str] = {}
    completions = [completions_of(())]
    clusters = clusters_of(clustered, dropped, texts)
    waiting = _requests(clusters, task_type, max_prompt_tokens, count_tokens, dropped)

    def done() -> Iterator[Distilled]:
        # Some prompts at a time: the texts of a large pool, written out as prompts, would fill the memory.
        while requests := list(islice(waiting, at_a_time)):
            records = _written(requests, generate, attempts, seed, task_type, journal)
            completions.append(completions_of(records))
            last = {record["prompt_hash"]: record["reason"] for record in records}
            for one in requests:
                if one.distillation is None:
                    dropped.update(dict.fromkeys(one.sources, last[one.hash]))
                else:
                    yield Distilled(one.rows, one.distillation, one.hash)

    dataset = distilled_dataset(done(), task_type, distiller_name)
    logger.info("Distilled %d rows; %d rows dropped.", len(dataset), len(dropped))
    return DistilledOutcome(dataset, dropped, dataset_of(pa.concat_tables(completions)))


def _requests(
    clusters: Iterable[list[dict[str, Any]]],
    task_type: TaskType,
    max_prompt_tokens: int | None,
    count_tokens: Callable[[Messages], int] | None,
    dropped: dict[str, str],
) -> Iterator[_Request]:
    for rows in clusters:
        for part in _parts(rows, task_type, max_prompt_tokens, count_tokens, dropped):
            messages = distillation_messages([source_text(row, task_type) for row in part], task_type)
            yield _Request(part, messages, prompt_hash(messages))


def _written(
    requests: Sequence[_Request],
    generate: Generate,
    attempts: int,
    seed: int,
    task_type: TaskType,
    journal: Journal | None,
) -> list[dict[str, Any]]:
    """Have prompts answered, malformed answers again; returns the records of all tries."""
    completions: list[dict[str, Any]] = []
    waiting = requests
    for attempt in range(1, attempts + 1):
        replies = _replies(waiting, generate, attempt, seed, journal) if waiting else []
        for request, reply in zip(waiting, replies, strict=True):
            completions.append(_judged(request, reply, attempt, task_type))
        # Nothing came back where the prompt does not fit or the server is down: another seed would not help.
        answered = [reply is not None for reply in replies]
        waiting = [one for one, text in zip(waiting, answered, strict=True) if text and one.distillation is None]
    return completions


def _parts(
    rows: list[dict[str, Any]],
    task_type: TaskType,
    longest: int | None,
    count_tokens: Callable[[Messages], int] | None,
    dropped: dict[str, str],
) -> list[list[dict[str, Any]]]:
    """A cluster as it is if its prompt fits, else parts of neighbors that do; a row too long for any is dropped."""
    if longest is None or count_tokens is None:
        return [rows]

    def fits(part: list[dict[str, Any]]) -> bool:
        texts = [source_text(row, task_type) for row in part]
        return count_tokens(distillation_messages(texts, task_type)) <= longest

    if fits(rows):
        return [rows]
    parts: list[list[dict[str, Any]]] = []
    for row in rows:
        if parts and fits([*parts[-1], row]):
            parts[-1].append(row)
        elif fits([row]):
            parts.append([row])
        else:
            dropped[row["id"]] = TOO_LONG
    return parts


def _replies(
    requests: Sequence[_Request], generate: Generate, attempt: int, seed: int, journal: Journal | None
) -> list[str | None]:
    """The completions of one attempt, from the journal where it has them."""
    keys = [f"{request.hash}:{attempt}" for request in requests]
    known: dict[str, str | None] = {key: journal[key] for key in keys if journal is not None and key in journal}
    asked = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
    if not asked:
        return [known[key] for key in keys]
    names = list(asked)
    # The first attempt is greedy. A seed depends on nothing but the prompt, so it is the same in any shard.
    seeds = None if attempt == 1 else [row_seed(seed, key) for key in names]
    conversations = [request.messages for request in asked.values()]
    if journal is None:
        written = generate(conversations, seeds=seeds)
    else:
        written = generate(conversations, seeds=seeds, on_reply=lambda place, text: journal.add(names[place], text))
        journal.flush()
    known |= dict(zip(names, written, strict=True))
    return [known[key] for key in keys]


def _judged(request: _Request, reply: str | None, attempt: int, task_type: TaskType) -> dict[str, Any]:
    """Read a completion; a good one goes into the request. Returns the record of this try."""
    stored = None if reply is None else reply.encode("utf-8", "replace").decode()
    parsed = None if reply is None or stored != reply else parse_completion(reply)
    if reply is None:
        reason: str | None = NO_COMPLETION
    elif parsed is None:
        reason = MALFORMED
    elif not answer_matches(parsed.answer, task_type):
        reason = WRONG_FORM
    else:
        reason, request.distillation = None, parsed
    return {
        "cluster_id": request.rows[0]["cluster_id"],
        "prompt_hash": request.hash,
        "sources": request.sources,
        "prompt_bytes": sum(len(message["content"].encode()) for message in request.messages),
        "attempt": attempt,
        "completion": stored,  # a lone surrogate, which Arrow refuses, is a question mark
        "reason": reason,
    }
