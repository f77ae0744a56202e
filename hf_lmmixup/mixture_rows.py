r"""A cluster as a row of MIXTURE: for SFT, for GRPO, or in the published columns.

A cluster is a dictionary with `id`, `task_type`, `sources` (the weak texts), `target`, `reasoning`, `topic` and
`source`, wherever it comes from: the bundled mini, published files, or one's own construction. A row of each form::

    sft   {"id": "9e1c...", "prompt": [{"role": "system", ...}, {"role": "user", "content": "Merge these ..."}],
           "completion": [{"role": "assistant", "content": "<think>...</think>\n<answer>Q: ...\nA: ...</answer>"}],
           "task_type": "qa", "topic": "tides", "source": "mini"}
    grpo  {"id": "9e1c...", "prompt": [...], "task_type": "qa", "reference": "Q: ...\nA: ...",
           "sources": ["Q: tides?\nA: Moon", ...], "topic": "tides", "source": "mini"}
    raw   {"id": "9e1c...", "instruction": "Merge these ...", "input": "Q: tides?...", "output": "Q: ...",
           "cot": "...", "task_type": "qa", "source": "mini"}
"""

from collections.abc import Callable
from typing import Any

from datasets import Features, List, Value

from hf_lmmixup.prompts import TASK_INSTRUCTIONS, distillation_messages, format_completion, linearize
from hf_lmmixup.records import TaskType


MESSAGES = List({"role": Value("string"), "content": Value("string")})

SFT = Features(
    {
        "id": Value("string"),
        "prompt": MESSAGES,
        "completion": MESSAGES,
        "task_type": Value("string"),
        "topic": Value("string"),
        "source": Value("string"),
    }
)
"""Columns of `sft` and of the five task types: TRL trains on `prompt` and `completion`, and ignores the others."""

GRPO = Features(
    {
        "id": Value("string"),
        "prompt": MESSAGES,
        "task_type": Value("string"),
        "reference": Value("string"),
        "sources": List(Value("string")),
        "topic": Value("string"),
        "source": Value("string"),
    }
)
"""Columns of `grpo`. TRL hands all but `prompt` to the rewards; it would drop a column called `completion`."""

RAW = Features(
    {
        "id": Value("string"),
        "instruction": Value("string"),
        "input": Value("string"),
        "output": Value("string"),
        "cot": Value("string"),
        "task_type": Value("string"),
        "source": Value("string"),
    }
)
"""The published columns; `None` where a file has none."""


def sft_row(cluster: dict[str, Any]) -> dict[str, Any]:
    """One cluster as a row of `sft`: merge these weak texts, and this is how it is done."""
    completion = format_completion(cluster["reasoning"], cluster["target"])
    return {
        "id": cluster["id"],
        "prompt": distillation_messages(cluster["sources"], cluster["task_type"]),
        "completion": [{"role": "assistant", "content": completion}],
        "task_type": cluster["task_type"],
        "topic": cluster["topic"],
        "source": cluster["source"],
    }


def grpo_row(cluster: dict[str, Any]) -> dict[str, Any]:
    """One cluster as a row of `grpo`: the same prompt, and what rewards compare with."""
    return {
        "id": cluster["id"],
        "prompt": distillation_messages(cluster["sources"], cluster["task_type"]),
        "task_type": cluster["task_type"],
        "reference": cluster["target"],
        "sources": list(cluster["sources"]),
        "topic": cluster["topic"],
        "source": cluster["source"],
    }


def raw_row(cluster: dict[str, Any]) -> dict[str, Any]:
    """One cluster in the published columns; a published row keeps its own values."""
    if (published := cluster.get("published")) is not None:
        return {column: published.get(column) for column in RAW}
    return {
        "id": cluster["id"],
        "instruction": TASK_INSTRUCTIONS[TaskType(cluster["task_type"])],
        "input": linearize(cluster["sources"]),
        "output": cluster["target"],
        "cot": cluster["reasoning"],
        "task_type": cluster["task_type"],
        "source": cluster["source"],
    }


FORMS: dict[str, tuple[Features, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "sft": (SFT, sft_row),
    "grpo": (GRPO, grpo_row),
    "raw": (RAW, raw_row),
}
"""Form -> its columns and the function that makes a row of a cluster."""
