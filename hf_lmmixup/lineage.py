"""Where a row came from and where it went, read from the stages of a run; and what goes when sources are withdrawn.

    story(Path("runs/pile"), "5f1d0c8f1f0b7a52")
    ->  [Step("load", "read from pile.jsonl"), Step("rate", "score 1"), Step("cluster", "cluster 7 with c02e..."),
         Step("distil", "try 1: taken"), ..., Step("end", "merged into 9c1fa07be4d2c611")]

A distilled row's story begins with its sources. A row that could not be read has its place (`pile.jsonl:17`) as id.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_lmmixup.cards import render_dataset_card
from hf_lmmixup.ledger import DROPPED as IS_DROPPED
from hf_lmmixup.ledger import KEPT, Ledger
from hf_lmmixup.results import LOST, dataset_facts
from hf_lmmixup.run_directory import (
    ATTEMPTS,
    CHECK,
    CLEAN,
    CLUSTER,
    DISTIL,
    DROPPED,
    FACTS,
    LEDGER,
    LEDGER_ROWS,
    LOAD,
    RATE,
    RERATE,
    ROWS,
    STAGES,
    UNIQUE,
    read_arrow,
    read_json,
    shards_of,
    whole_folder,
    write_json,
)
from hf_lmmixup.run_facts import count_rows, read_facts
from hf_lmmixup.stages import readable


EXCERPT = 200

SHOWN = 5
"""Ids and sources that a message names."""

TEXTS = ("examples", "map")
"""Facts that hold texts of raw rows."""

WITHDRAWN = "withdraw: withdrawn"
ORPHANED = f"{LOST}withdraw: another of its sources is withdrawn"


@dataclass(frozen=True)
class Step:
    """One thing that happened to a row.

    Attributes:
        stage: Where.
        text: What.
    """

    stage: str
    text: str


@dataclass(frozen=True)
class Withdrawn:
    """What a withdrawal did.

    Attributes:
        withdrawn: The raw rows that are gone.
        dropped: Rows of the dataset that went with them: id -> the withdrawn rows behind it.
        orphans: Raw rows that were merged into a dropped row and are not withdrawn themselves.
        left: Rows of the new dataset.
    """

    withdrawn: list[str]
    dropped: dict[str, list[str]]
    orphans: list[str]
    left: int


def story(run: Path, identifier: str) -> list[Step]:
    """What happened to one row of a finished run.

    Args:
        run: The run directory.
        identifier: Id of a raw or distilled row, or the place of a row that could not be read.

    Returns:
        The steps in their order.

    Raises:
        FileNotFoundError: If the directory holds no finished run.
        ValueError: If the run knows no such row.
    """
    _check(run)
    ends = _having(pq.read_table(run / LEDGER_ROWS), "id", [identifier])
    steps = _source_steps(run, identifier) if ends else _distilled_steps(run, identifier)
    if not steps and not ends:
        raise ValueError(f"{run} knows no row {identifier!r}. Its ids are in {LEDGER_ROWS} and dataset/.")
    for end in ends:
        state, detail = end["state"], end["detail"]
        text = {KEPT: "in the dataset as it is", IS_DROPPED: f"dropped: {detail}"}.get(state, f"merged into {detail}")
        steps.append(Step("end", text))
        if state not in (KEPT, IS_DROPPED) or detail.startswith(LOST):
            steps += [step for row in _made_from(run, identifier) for step in _distilled_steps(run, row)]
    return steps


def _source_steps(run: Path, identifier: str) -> list[Step]:
    steps = [
        Step("load", f"read from {row['source']}: {_excerpt(row['prompt'])}")
        for row in _stage(run, LOAD, "id", identifier)
    ]
    for stage in (LOAD, CLEAN):
        steps += _reason(run, stage, identifier)
    for row in _stage(run, RATE, "id", identifier):
        steps.append(Step("rate", row["rating_error"] if row["score"] is None else f"score {row['score']}"))
    steps += _reason(run, UNIQUE, identifier)
    stood_for = [other for other, reason in _dropped(run, UNIQUE).items() if f"({identifier})" in reason]
    if stood_for:
        steps.append(Step("deduplicate", f"stands for {', '.join(sorted(stood_for))}"))
    steps += _reason(run, CLUSTER, identifier)
    is_alone = False
    for row in _stage(run, CLUSTER, "id", identifier):
        is_alone = row["cluster_id"] is None
        if is_alone:
            steps.append(Step("cluster", "no related rows"))
        else:
            members = _stage(run, CLUSTER, "cluster_id", row["cluster_id"])
            loaded = _stage(run, LOAD, "id", *(member["id"] for member in members))
            others = [f"{one['id']} ({_excerpt(one['prompt'], 60)})" for one in loaded if one["id"] != identifier]
            steps.append(Step("cluster", f"cluster {row['cluster_id']} with {'; '.join(others) or 'no other row'}"))
    for attempt in _attempts(run, identifier):
        verdict = attempt["reason"] or "taken"
        steps.append(Step("distil", f"try {attempt['attempt']}: {verdict}: {_excerpt(attempt['completion'])}"))
    return steps if is_alone else steps + _reason(run, DISTIL, identifier)  # alone, it was in no prompt


def _made_from(run: Path, identifier: str) -> list[str]:
    """Ids of the rows that were distilled from a raw row; at most one."""
    table = read_arrow(run / STAGES / DISTIL / ROWS)
    sources = table["sources"].combine_chunks()
    places = pc.list_parent_indices(sources).filter(pc.equal(pc.list_flatten(sources), identifier))
    return table["id"].take(places).to_pylist()


def _distilled_steps(run: Path, identifier: str) -> list[Step]:
    steps = []
    for row in _stage(run, DISTIL, "id", identifier):
        scores = zip(row["sources"], row["source_scores"], strict=True)
        behind = ", ".join(f"{source} (score {'unknown' if score is None else score})" for source, score in scores)
        steps.append(Step("distil", f"by {row['distiller']} from {behind}: {_excerpt(row['completion'])}"))
    for row in _stage(run, CHECK, "id", identifier):
        rates = {"made up": row["novelty"], "kept": row["coverage"]}
        steps.append(Step("check", ", ".join(f"{name} {_share(rate)}" for name, rate in rates.items())))
    steps += _reason(run, CHECK, identifier)
    for row in _stage(run, RERATE, "id", identifier):
        steps.append(Step("rate again", row["rating_error"] if row["score"] is None else f"score {row['score']}"))
    if steps:
        found = [_having(pq.read_table(path, columns=["id", "origin"]), "id", [identifier]) for path in shards_of(run)]
        there = any(row["origin"] == "distilled" for rows in found for row in rows)
        steps.append(Step("end", "in the dataset" if there else "not in the dataset"))
    return steps


def withdraw(run: Path, output: Path, *, ids: Iterable[str] = (), sources: Iterable[str] = ()) -> Withdrawn:
    """Write a run's dataset anew without some raw rows and without everything that was distilled from them.

    Args:
        run: The run directory; it is not changed.
        output: Folder of the new dataset, with its card, the facts that `lmmixup push dataset` makes one from, and
            `withdrawn.json`.
        ids: Ids of raw rows.
        sources: Values of their column `source`; all rows of them go.

    Returns:
        What went.

    Raises:
        FileNotFoundError: If the directory holds no finished run, or not all of its dataset.
        ValueError: If the run has read no row of one of the ids or sources, or the folder exists.
    """
    _check(run)
    if output.exists() or output.is_symlink():
        raise ValueError(f"{output} exists. Name another folder.")
    count_rows(shards_of(run))
    gone = _raw_rows(run, {"id": list(dict.fromkeys(ids)), "source": list(dict.fromkeys(sources))})
    dropped: dict[str, list[str]] = {}
    orphans: set[str] = set()
    parts = []
    with whole_folder(output) as partial:
        (partial / "data").mkdir()
        for shard in shards_of(run):
            table = pq.read_table(shard)
            kept = []
            for identifier, behind in zip(table["id"].to_pylist(), table["sources"].to_pylist(), strict=True):
                lost = sorted(gone.intersection(behind))
                kept.append(not lost)
                if lost:
                    dropped[identifier] = lost
                    orphans.update(set(behind) - gone)
            table = table.filter(pa.array(kept, pa.bool_()))
            parts.append(table.select(["origin", "score"]))
            pq.write_table(table, partial / "data" / shard.name)
        left = pa.concat_tables(parts)
        done = Withdrawn(sorted(gone), dropped, sorted(orphans), len(left))
        write_json(partial / "withdrawn.json", vars(done))
        facts = _facts(run, done, left)
        write_json(partial / FACTS, facts)
        (partial / "README.md").write_text(render_dataset_card(facts), encoding="utf-8")
    return done


def _raw_rows(run: Path, named: dict[str, list[str]]) -> set[str]:
    """Ids of the raw rows that have one of the values in a column; every value must be one of a row.

    Raises:
        ValueError: If one is not; a request to delete must not go unnoticed for a slip of the pen.
    """
    loaded = read_arrow(run / STAGES / LOAD / ROWS)
    gone, unknown = set[str](), []
    for column, values in named.items():
        wanted = pa.array(values, pa.string())
        gone.update(loaded["id"].filter(pc.is_in(loaded[column], wanted)).to_pylist())
        absent = wanted.filter(pc.invert(pc.is_in(wanted, loaded[column]))).to_pylist()
        if absent:
            more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
            unknown.append(f"{len(absent)} by {column}: {', '.join(map(repr, absent[:SHOWN]))}{more}")
    if unknown or not gone:
        told = "".join(f" ({one})" for one in unknown)
        places = f"Ids and sources stand in {STAGES}/{LOAD}/{ROWS}."
        raise ValueError(f"{run} has read none of these rows{told}. {places}{_distilled(run, named['id'])}")
    return gone


def _distilled(run: Path, identifiers: list[str]) -> str:
    """What to withdraw instead of distilled rows; nothing if none of the rows is one."""
    found = _stage(run, DISTIL, "id", *identifiers)
    rows = [f"{row['id']!r} is distilled from {', '.join(map(repr, row['sources']))}" for row in found[:SHOWN]]
    return f" Raw rows are withdrawn: {'; '.join(rows)}." if rows else ""


def _facts(run: Path, done: Withdrawn, left: pa.Table) -> dict[str, Any]:
    """The run's facts as they are now, for the card of the rows that are left and for those who publish them."""
    facts = {name: value for name, value in read_facts(run).items() if name not in TEXTS}
    note = f"{len(done.withdrawn)} raw rows were withdrawn, and with them {len(done.dropped)} rows of the dataset."
    books = Ledger(facts["ledger"]["rows_in"], pq.read_table(run / LEDGER_ROWS), [*facts["ledger"]["notes"], note])
    reasons = dict.fromkeys(done.orphans, ORPHANED) | dict.fromkeys(done.withdrawn, WITHDRAWN)
    return facts | dataset_facts(left, books.without(reasons).summary(), facts["scores"])


def _check(run: Path) -> None:
    if not all((run / name).is_file() for name in (LEDGER, LEDGER_ROWS)):
        raise FileNotFoundError(f"{run} holds no finished run: {LEDGER} and {LEDGER_ROWS} are not both there.")


def _stage(run: Path, stage: str, column: str, *values: Any) -> list[dict[str, Any]]:
    """The rows of a stage with one of the values in a column; none if the run had no such stage."""
    path = run / STAGES / stage
    return _having(read_arrow(path / ROWS), column, values) if path.is_dir() else []


def _having(table: pa.Table, column: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    wanted = pa.array(values, table.schema.field(column).type)
    return table.filter(pc.is_in(table[column], wanted)).to_pylist()


def _attempts(run: Path, identifier: str) -> list[dict[str, Any]]:
    path = run / STAGES / DISTIL / ATTEMPTS
    rows = read_arrow(path).to_pylist() if path.is_file() else []
    return [row for row in rows if identifier in row["sources"]]


def _dropped(run: Path, stage: str) -> dict[str, str]:
    path = run / STAGES / stage
    return dict(read_json(path / DROPPED)) if path.is_dir() else {}


def _reason(run: Path, stage: str, identifier: str) -> list[Step]:
    reason = _dropped(run, stage).get(identifier)
    return [Step(readable(stage), f"dropped: {reason}")] if reason else []


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"


def _excerpt(text: str | None, length: int = EXCERPT) -> str:
    line = " ".join((text or "nothing").split())
    return line if len(line) <= length else f"{line[:length]} …"
