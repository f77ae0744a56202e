# /// script
# dependencies = ["hf-lmmixup[offline,eval]"]
# ///
"""How good distilled instructions are: form, nearness to a reference, quality, and what they keep of their sources.

    metric = evaluate.load("evaluate_modules/instruction_distillation")
    metric.compute(predictions=completions, references=excellent, task_types=kinds, sources=weak, datastore="bundled")

Scores are those of `hf_lmmixup.evaluation`. What could not be judged is left out of a mean and never averaged as 0.
"""

from typing import Any

import datasets
import evaluate

from hf_lmmixup.evaluation import score_completions, summarize
from hf_lmmixup.overlap import TokenEncoder


_DESCRIPTION = """
Scores completions of an instruction distiller: texts of the form <think>...</think> <answer>...</answer> that merge
several weak texts into an excellent one (LM-Mixup, arXiv 2510.20449).
"""

_INPUTS = """
Args:
    predictions: Completions; a missing one is an empty string.
    references: The excellent text of each; an empty string where there is none.
    task_types: qa, mcq, tfq, cs or para for each (optional; qa).
    sources: The weak texts that each completion merges (optional).
    datastore: Folder or Hub id of a datastore, or `bundled`, that judges the quality; without one it is None.
    encoder: Folder or Hub id of a sentence encoder; the offline MiniLM by default.
    token_similarity: Whether to match tokens by their vectors, as BERTScore does.
Returns:
    format, alignment, quality, coverage, total, rouge_l, token_similarity: means in [0, 1] over what could be judged;
    length: characters of the answers; each None if nothing could be judged. `judged`: how many were, for each score.
    `task_types`: the same for each task type.
"""

_CITATION = "LM-Mixup, https://arxiv.org/abs/2510.20449"


class InstructionDistillation(evaluate.Metric):
    """The metric, for `evaluate.load` and `evaluate.combine`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        task_types: list[str] | None = None,
        sources: list[list[str]] | None = None,
        datastore: str | None = None,
        encoder: str | None = None,
        token_similarity: bool = True,
    ) -> dict[str, Any]:
        kinds = task_types or ["qa"] * len(predictions)
        columns = score_completions(
            predictions,
            task_types=kinds,
            references=[text or None for text in references],  # `evaluate` lets no None in
            sources=sources or [None] * len(predictions),
            environment={"HF_LMMIXUP_DATASTORE": datastore or "", "HF_LMMIXUP_ENCODER": encoder or ""},
            token_encoder=TokenEncoder(encoder) if token_similarity else None,
        )
        found = summarize(columns, kinds, answered=[bool(text) for text in predictions])
        parts = {kind: {**part["means"], "judged": part["judged"]} for kind, part in found["task_types"].items()}
        return {**found["means"], "judged": found["judged"], "task_types": parts}
