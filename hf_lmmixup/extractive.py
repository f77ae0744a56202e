"""Distillation without a model that writes: the best pair of a cluster, completed with what only the others say.

The pair with the best score (of equals the most central one) is kept word for word. Sentences of the other answers are
added while they concern the question, repeat nothing that is already there and state a fact that is missing, in the
order of maximal marginal relevance (MMR; Carbonell and Goldstein, 1998). One cluster::

    Q: Why do tides occur?  A: The Moon pulls the oceans.                             score 2
    Q: tides                A: The Moon pulls the sea. High water comes twice a day.  score 1
    ->  Q: Why do tides occur?  A: The Moon pulls the oceans. High water comes twice a day.

Nothing can be invented this way, and nothing is repaired either: this mode is for those who have neither a GPU nor an
endpoint, and it is the floor that a distiller has to beat. Only prose about a question takes further sentences. The
result of a task (`Classify the following ...`) is right for that task alone; lists, verse and code would be torn.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from hf_lmmixup.distilled_rows import (
    Distilled,
    DistilledOutcome,
    clusters_of,
    distilled_dataset,
    score_of,
    source_text,
)
from hf_lmmixup.encoder import Encoder
from hf_lmmixup.facts import Facts, extract_facts, merged_facts
from hf_lmmixup.journal import Journal
from hf_lmmixup.numerals import UNSPACED
from hf_lmmixup.prompts import distillation_messages, prompt_hash
from hf_lmmixup.records import Distillation, TaskType, pair_text
from hf_lmmixup.wording import FINAL_MARKS, FULL_WIDTH_MARKS, split_sentences


NAME = "extractive"
"""Name of the distiller in the lineage."""

RELEVANCE_WEIGHT = 0.7
"""MMR's lambda: relevance against novelty (0.7 is the usual choice for short summaries)."""

MIN_RELEVANCE = 0.3
"""Smallest cosine between a sentence and the pair that it completes; it belongs to the MiniLM encoder."""

MAX_SIMILARITY = 0.85
"""A sentence closer than this to one that is there already is a repetition."""

MIN_NEW_WORDS = 2
"""A sentence must add a number, a name or code, or so many content words."""

MIN_WORDS = 3
"""A sentence has so many words at least, and an answer that others complete has more: `50.` and `Fact` say it all."""

TASKS = frozenset(
    """add analyze arrange assign calculate categorize choose classify come complete compose compute construct correct
    craft create design detect determine develop draft edit evaluate extract fill find format formulate generate given
    identify imagine improve insert make modify multiply order organize paraphrase parse pick predict produce punctuate
    rank re-order re-write rearrange remove reorder rephrase replace reverse reword rewrite select simplify solve sort
    split summarise summarize take transform translate turn use using write""".split()
)
"""Words that open a prompt which wants something made of its own material."""

ITEM_MARKS = ("-", "*", "#", "|", ">", "\u2022", "$$", "\\")
"""What opens a line of a list, a table, a heading, a quotation or a formula."""

_NUMBERED = re.compile(r"[0-9]{1,3}[.)](?![0-9])")

ENDS = (*FINAL_MARKS, *FULL_WIDTH_MARKS, "\u2026")
"""What a whole sentence ends with."""

NOT_ALONE = ("?", "\uff1f", "\u061f", ":")
"""What ends a question, or announces what follows."""

CLOSERS = "\"')]\u201d\u2019\u00bb\u300d\u300f\uff09"
"""What may stand behind a final mark."""

MAX_GROWTH = 3.0
"""The answer may grow to this many times the length of the best answer, or of `SHORT` characters."""

SHORT = 200

CHUNK = 512
"""Clusters whose sentences are embedded together."""


class _Written(NamedTuple):
    """What became of a cluster, as the journal holds it."""

    reasoning: str
    prompt: str
    completion: str


def distill_extractively(
    clustered: Dataset,
    encoder: Encoder,
    *,
    task_type: TaskType | str = TaskType.QA,
    journal: Journal | None = None,
    progress: Callable[[int], None] | None = None,
    texts: Dataset | None = None,
) -> DistilledOutcome:
    """Distil every cluster into one row without a model that writes.

    Args:
        clustered: Rows with `id`, `prompt`, `completion` and `cluster_id`; `score` if there is one.
        encoder: For the similarity of sentences.
        task_type: `qa` or `para`; the other forms cannot take further sentences.
        journal: Where results are recorded as they come; clusters whose texts and scores are there already
            cost nothing.
        progress: Called with the number of clusters done since the last call.
        texts: Rows with `id`, `prompt` and `completion`, if those of `clustered` have no texts.

    Returns:
        Rows with the columns of `records.DISTILLED`, by cluster, and for every row without a cluster the reason. The
        order of the input rows has no influence.

    Raises:
        ValueError: If the task type is another one, or a score is no whole number.
    """
    if TaskType(task_type) not in (TaskType.QA, TaskType.PARA):
        raise ValueError(
            f"The extractive mode writes 'qa' and 'para', not {str(task_type)!r}; name a distiller instead."
        )
    dropped: dict[str, str] = {}
    waiting = clusters_of(clustered, dropped, texts)

    def done() -> Iterator[Distilled]:
        while clusters := list(islice(waiting, CHUNK)):
            hashes = [_hash(rows, TaskType(task_type)) for rows in clusters]
            keys = list(map(_key, clusters, hashes))
            known = {key: _Written(*journal[key]) for key in keys if journal is not None and key in journal}
            new = [rows for rows, key in zip(clusters, keys, strict=True) if key not in known]
            embeddings = _embed(new, encoder)
            for rows, key, hashed in zip(clusters, keys, hashes, strict=True):
                if key not in known:
                    known[key] = _merge(rows, embeddings)
                    if journal is not None:
                        journal.add(key, list(known[key]))
                reasoning, prompt, completion = known[key]
                yield Distilled(rows, Distillation(reasoning, completion), hashed, prompt)
            if progress is not None:
                progress(len(clusters))

    return DistilledOutcome(distilled_dataset(done(), TaskType(task_type), NAME), dropped)


def _hash(rows: list[dict[str, Any]], task_type: TaskType) -> str:
    """What stands for a cluster's texts: the hash of the prompt that a model would get."""
    return prompt_hash(distillation_messages([source_text(row, task_type) for row in rows], task_type))


def _key(rows: list[dict[str, Any]], prompt: str) -> str:
    """Where the journal holds a cluster: the scores say which pair is the best."""
    return ":".join([prompt, *(str(score_of(row)) for row in rows)])


def _embed(clusters: Sequence[list[dict[str, Any]]], encoder: Encoder) -> dict[str, np.ndarray]:
    """Unit vectors (d,) of all pairs and of the sentences of all answers."""
    texts: dict[str, None] = {}
    for cluster in clusters:
        for row in cluster:
            texts[pair_text(row["prompt"], row["completion"])] = None
            if len(cluster) > 1:
                texts |= dict.fromkeys(_sentences(row["completion"]))
    return dict(zip(texts, encoder.encode(list(texts)), strict=True)) if texts else {}


def _merge(rows: list[dict[str, Any]], embeddings: dict[str, np.ndarray]) -> _Written:
    pairs = np.array([embeddings[pair_text(row["prompt"], row["completion"])] for row in rows])
    centrality = pairs @ pairs.mean(axis=0)
    # Rounded, so that sums of another order cannot turn the choice round.
    best = max(range(len(rows)), key=lambda i: (score_of(rows[i]), round(float(centrality[i]), 5), -i))
    base = rows[best]["completion"].strip()
    others = [row["completion"] for i, row in enumerate(rows) if i != best and not _is_task(row["prompt"])]
    others = others if _takes_more(rows[best]) else []
    offered = list(dict.fromkeys(text for other in others for text in _sentences(other)))
    added: list[str] = []
    if offered:
        told = np.array([pairs[best], *(embeddings[text] for text in _sentences(base))])
        vectors = np.array([embeddings[text] for text in offered])
        order = _additions(offered, vectors, told, base)
        added = [offered[i] for i in order]
    completion = _joined(map(_ended, [base, *added])) if added else base
    reasoning = (
        f"Kept the best of {len(rows)} texts and added {len(added)} of {len(offered)} sentences of the others: those "
        "that concern the same question and state something new."
    )
    return _Written(reasoning, rows[best]["prompt"].strip(), completion)


def _additions(texts: list[str], vectors: np.ndarray, told: np.ndarray, base: str) -> list[int]:
    r"""Which sentences to add, in order: $\arg\max_s \lambda \cos(s, p) - (1 - \lambda) \max_t \cos(s, t)$.

    Args:
        texts: The sentences offered.
        vectors: Their unit vectors (m, d).
        told: Unit vectors (1 + t, d) of the pair `p` and of the sentences `t` of its answer.
        base: The answer.
    """
    relevance = vectors @ told[0]
    repetition = (vectors @ told[1:].T).max(axis=1, initial=-1.0)
    known, length, limit = extract_facts(base), len(base), MAX_GROWTH * max(SHORT, len(base))
    facts = [extract_facts(text) for text in texts]
    left = [i for i in range(len(texts)) if relevance[i] >= MIN_RELEVANCE]
    chosen: list[int] = []
    while True:
        left = [i for i in left if repetition[i] <= MAX_SIMILARITY and length + len(texts[i]) <= limit]
        left = [i for i in left if _adds(facts[i], known)]
        if not left:
            return chosen
        worth = RELEVANCE_WEIGHT * relevance - (1 - RELEVANCE_WEIGHT) * repetition
        # Rounded, with the text to break ties: sums of another order must not turn the choice round.
        pick = max(left, key=lambda i: (round(float(worth[i]), 5), texts[i]))
        left.remove(pick)
        chosen.append(pick)
        length += len(texts[pick])
        known = merged_facts([base, *(texts[i] for i in chosen)])
        repetition = np.maximum(repetition, vectors @ vectors[pick])


def _adds(facts: Facts, known: Facts) -> bool:
    """Whether a sentence states something that is missing."""
    hard = facts.numbers - known.numbers or (facts.names | facts.code) - known.tokens
    return bool(hard) or len(facts.words - known.words) >= MIN_NEW_WORDS


def _takes_more(row: dict[str, Any]) -> bool:
    """Whether the answer of a row can be completed: prose that answers a question in a sentence or more."""
    text = row["completion"].strip()
    last = text.splitlines()[-1].strip() if text else ""
    is_whole = last == text or _is_ended(last)
    is_prose = "```" not in text and not _is_item(last) and is_whole and not last.endswith(NOT_ALONE)
    return is_prose and _word_count(text) > MIN_WORDS and not _is_task(row["prompt"])


def _is_task(prompt: str) -> bool:
    """Whether a prompt brings material of its own, below an empty line, or wants something made."""
    words = prompt.split(None, 1)
    return "\n\n" in prompt.strip() or (bool(words) and words[0].strip(',.:*#"').casefold() in TASKS)


def _sentences(completion: str) -> list[str]:
    """Sentences that can stand in another answer: lines of code, of verse and of lists, and questions, cannot."""
    text = completion.strip()
    lines = [] if "```" in text else [line.strip() for line in text.splitlines()]
    prose = [line for line in lines if not _is_item(line) and (len(lines) == 1 or _is_ended(line))]
    found = [sentence for line in prose for sentence in split_sentences(line)]
    return [one for one in found if _word_count(one) >= MIN_WORDS and not one.endswith(NOT_ALONE)]


def _is_item(line: str) -> bool:
    return line.startswith(ITEM_MARKS) or _NUMBERED.match(line) is not None


def _word_count(text: str) -> int:
    """Words of a text; where none are parted by spaces two characters count as one."""
    return len(text.split()) + len(UNSPACED.findall(text)) // 2


def _is_ended(text: str) -> bool:
    return text.rstrip(CLOSERS).endswith(ENDS)


def _ended(text: str) -> str:
    if _is_ended(text) or text.endswith(("`", ":", ";")):
        return text
    return text + ("\u3002" if UNSPACED.match(text[-1]) else ".")


def _joined(sentences: Iterable[str]) -> str:
    """Sentences in one text, with a space between them where their script has spaces."""
    whole = ""
    for text in sentences:
        whole += text if not whole or whole.endswith(tuple(FULL_WIDTH_MARKS)) else f" {text}"
    return whole
