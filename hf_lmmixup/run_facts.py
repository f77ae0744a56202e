"""Facts of a finished run that come later: evaluations, benchmarks, comparisons; its report is written anew with them.

    add_facts(Path("runs/quickstart"), mixture_test={"data": "mini MIXTURE", "rows": 45, "systems": [...]})

Cards are rendered from the same facts when something is pushed.
"""

import json
from pathlib import Path
from typing import Any

from hf_lmmixup.report import render_report
from hf_lmmixup.run_directory import RunDirectory, write_json


FACTS, REPORT = "facts.json", "report.html"


def read_facts(run: str | Path) -> dict[str, Any]:
    """The facts of a finished run.

    Raises:
        FileNotFoundError: If it has none.
    """
    path = Path(run) / FACTS
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no finished run: there is no {FACTS} in it.")
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def add_facts(run: str | Path, **facts: Any) -> Path:
    """Add facts to those of a run, or replace them, and write its report anew.

    Args:
        run: The run directory.
        **facts: Plain data by name.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If the run has no facts.
        RuntimeError: If another process works in the directory.
    """
    read_facts(run)
    with RunDirectory(run).locked():
        known = read_facts(run) | facts
        page = render_report(known)
        write_json(Path(run) / FACTS, known)
        (Path(run) / REPORT).write_text(page, encoding="utf-8")
    return Path(run) / REPORT
