r"""How near a text is to its reference: by the words they share in order, and by what their words mean.

**ROUGE-L** (Lin, 2004) is the F-measure of the longest common subsequence of words, computed by `rouge_score`. That
library reads ASCII words only; here it is given words of any script.

**Token similarity** is the greedy matching of BERTScore (arXiv 1904.09675) without its rescaling: every token of the
text is matched with the most similar token of the reference, and back. It uses the sentence encoder of this package,
so it runs offline; its values are not those of the `bert_score` package, whose model is RoBERTa-large::

    rouge_l("The Moon pulls the sea.", "The sea is pulled by the Moon.")       ->  0.333
    TokenEncoder().similarity(["The Moon pulls the sea."], ["The Moon's gravity moves the oceans."])  ->  [0.77]
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from hf_lmmixup.encoder import encodable, load_encoder, unit_rows


WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
"""A word; in scripts that write none apart, a character."""

MOST_WORDS = 1_000
"""Words that ROUGE-L reads: its time grows with the product of both lengths."""

BATCH = 16
"""Texts whose tokens are embedded together."""

REPORT_EXTRA = 'ROUGE-L needs rouge-score: pip install "hf-lmmixup[report]".'


class _Words:
    """Words of any script, for `rouge_score`."""

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.casefold())[:MOST_WORDS]


@lru_cache(maxsize=1)
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(REPORT_EXTRA) from error
    return RougeScorer(["rougeL"], tokenizer=_Words())


def check_rouge() -> None:
    """Find out before any work whether ROUGE-L can be computed.

    Raises:
        ImportError: If the `report` extra is missing.
    """
    _scorer()


def rouge_l(text: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words, in [0, 1].

    Raises:
        ImportError: If the `report` extra is missing.
    """
    return float(_scorer().score(reference, text)["rougeL"].fmeasure)


class TokenEncoder:
    """Vectors of the tokens of texts, and the similarity of texts by them.

    Args:
        name: Folder or Hub id of a sentence-transformers model; `None` is the offline MiniLM where it is installed.

    Raises:
        ImportError: If the `embed` extra is missing.
    """

    def __init__(self, name: str | None = None) -> None:
        encoder: Any = load_encoder(name, precision="float32")
        self.name = encoder.name
        self._model = encoder.model

    def similarity(self, texts: Sequence[str], references: Sequence[str]) -> list[float]:
        """BERTScore's F1 of each text with its reference.

        Args:
            texts: What was written (n).
            references: What was wanted (n).

        Returns:
            Values in [-1, 1], in practice in [0, 1]; 0 where one of the two has no token.

        Raises:
            ValueError: If the numbers differ.
        """
        if len(texts) != len(references):
            raise ValueError(f"{len(texts)} texts for {len(references)} references; give one each.")
        vectors = self.encode([*texts, *references])
        return [
            greedy_f1(text, wanted) for text, wanted in zip(vectors[: len(texts)], vectors[len(texts) :], strict=True)
        ]

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Unit vectors (tokens, d) of each text, without those of the special tokens; equal texts are encoded once."""
        place = {text: number for number, text in enumerate(dict.fromkeys(map(encodable, texts)))}
        order = sorted(place, key=len)
        found: dict[str, np.ndarray] = {}
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            found |= dict(zip(batch, self._forward(batch), strict=True))
        return [found[encodable(text)] for text in texts]

    def _forward(self, batch: list[str]) -> list[np.ndarray]:
        import torch

        tokens = self._model.tokenizer(
            batch,
            padding=True,
            truncation=True,
            max_length=self._model.max_seq_length,
            return_tensors="pt",
            return_special_tokens_mask=True,
        )
        kept = (tokens.pop("special_tokens_mask") == 0) & (tokens["attention_mask"] == 1)
        with torch.inference_mode():
            output = self._model({name: value.to(self._model.device) for name, value in tokens.items()})
        vectors = output["token_embeddings"].float().cpu().numpy()
        return [unit_rows(rows[mask]) for rows, mask in zip(vectors, kept.numpy(), strict=True)]


def greedy_f1(text: np.ndarray, reference: np.ndarray) -> float:
    r"""$F_1$ of precision $\frac1n\sum_i\max_j x_i\cdot y_j$ and recall $\frac1m\sum_j\max_i x_i\cdot y_j$.

    Args:
        text: Unit vectors (n, d).
        reference: Unit vectors (m, d).
    """
    if not len(text) or not len(reference):
        return 0.0
    cosines = text @ reference.T
    precision, recall = float(cosines.max(axis=1).mean()), float(cosines.max(axis=0).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
