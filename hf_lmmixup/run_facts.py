"""Facts of a finished run that come later: evaluations, benchmarks, comparisons; its report is written anew with them.

    add_facts(Path("runs/quickstart"), mixture_test={"data": "mini MIXTURE", "rows": 45, "systems": [...]})

Cards are rendered from the same facts when something is pushed.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_lmmixup.inputs import parquet_file
from hf_lmmixup.report import render_report, save_report
from hf_lmmixup.run_directory import FACTS, REPORT, RunDirectory, read_json, write_json


logger = logging.getLogger(__name__)

SHARD, SHARD_NAME = re.compile(r"(.+-)\d{5}-of-(\d{5})\.parquet"), "{}{:05d}-of-{:05d}.parquet"
"""The names of a dataset's Parquet files, which tell how many there are."""


def read_facts(run: str | Path) -> dict[str, Any]:
    """The facts of a finished run.

    Raises:
        FileNotFoundError: If it has none.
        ValueError: If they are damaged.
    """
    path = Path(run) / FACTS
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no finished run: there is no {FACTS} in it.")
    facts: dict[str, Any] = read_json(path)
    return facts


def count_rows(shards: Sequence[Path]) -> int:
    """How many rows a dataset holds.

    Args:
        shards: Its Parquet files, `train-00000-of-00002.parquet` and so on.

    Raises:
        FileNotFoundError: If there is none, or one of those that their names tell of is missing.
        ValueError: If one is damaged.
    """
    names = {shard.name for shard in shards}
    told = {(match[1], int(match[2])) for match in map(SHARD.fullmatch, names) if match} or {("train-", 1)}
    for kind, count in sorted(told):
        missing = [name for number in range(count) if (name := SHARD_NAME.format(kind, number, count)) not in names]
        if missing:
            raise FileNotFoundError(f"The dataset is not whole: {missing[0]} is missing. Restore it.")
    return sum(_rows_in(shard) for shard in shards)


def _rows_in(shard: Path) -> int:
    with parquet_file(shard) as file:
        return int(file.metadata.num_rows)


def add_facts(run: str | Path, **facts: Any) -> Path | None:
    """Add facts to those of a run, or replace them, and write its report anew if it can be drawn here.

    Args:
        run: The run directory.
        **facts: Plain data by name.

    Returns:
        The report; `None` where plotly is missing, which a warning says.

    Raises:
        FileNotFoundError: If the run has no facts.
        RuntimeError: If another process works in the directory.
    """
    read_facts(run)
    with RunDirectory(run).locked():
        known = read_facts(run) | facts
        write_json(Path(run) / FACTS, known)
        try:
            page = render_report(known)
        except ImportError as error:
            logger.warning("%s was not written anew: %s", Path(run) / REPORT, error)
            return None
        save_report(page, Path(run) / REPORT)
    return Path(run) / REPORT
