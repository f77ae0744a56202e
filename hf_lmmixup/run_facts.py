"""Facts of a finished run that come later: evaluations, benchmarks, comparisons; its report is written anew with them.

    add_facts(Path("runs/quickstart"), mixture_test={"data": "mini MIXTURE", "rows": 45, "systems": [...]})

Cards are rendered from the same facts when something is pushed.
"""

import json
import logging
from pathlib import Path
from typing import Any

from hf_lmmixup.report import render_report
from hf_lmmixup.run_directory import RunDirectory, write_json


logger = logging.getLogger(__name__)

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
        (Path(run) / REPORT).write_text(page, encoding="utf-8")
    return Path(run) / REPORT
