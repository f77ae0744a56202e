"""How well scorers predict real ratings: the published kNN posterior, logistic regression, and the package's head.

    python benchmarks/quality_auc.py [--data ../shared/data/alpaca_9k.parquet] [--cache FOLDER] [--tried]

The data are 9,229 Stanford Alpaca rows with a verdict by another model (`rated_high_accuracy`, AlpaGasus data); 6,500
rows, drawn with seed 0, are for training and the others for testing. Baselines: the posterior of arXiv 2510.20449 over
16 and over 64 neighbors, logistic regression on the embedding, and on the embedding with fourteen plain features of
the text. Ours is the default judge of a `ScoredDatastore` of the training rows, default settings: whether it is the
head, and how strong its penalty is, were decided by folds of the training rows.

Embeddings (bundled MiniLM) take some minutes and are kept in the cache folder. With `--tried` also what else was tried
for the head: `docs/quality.md` lists it.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


DATA = Path(__file__).resolve().parents[1] / "../shared/data/alpaca_9k.parquet"
CACHE = Path(tempfile.gettempdir()) / "hf-lmmixup-quality-auc"
TRAINING_ROWS, SEED = 6500, 0
TARGET = 0.67

HIGH, LOW = 5, 0
"""The two verdicts as scores."""

FEATURES = (
    "body words",
    "head words",
    "body characters",
    "distinct words",
    "word length",
    "share of figures",
    "commas",
    "sentences",
    "sentence length",
    "body ends a sentence",
    "body starts upper-case",
    "body words of the head",
    "lines",
    "unusual characters",
)
"""The fourteen plain features of the strongest baseline, out of `features.FEATURES`."""


class Stored:
    """An encoder that knows the texts of this benchmark already."""

    name, revision = "stored", None

    def __init__(self, texts: list[str], rows: np.ndarray) -> None:
        self.rows = dict(zip(texts, rows, strict=True))

    def encode(self, texts: Any) -> np.ndarray:
        """Unit rows of known texts."""
        return np.stack([self.rows[text] for text in texts])


class Data:
    """Texts, verdicts, embeddings and the split."""

    def __init__(self, path: Path, cache: Path) -> None:
        import pyarrow.parquet as pq

        from hf_lmmixup.features import text_features
        from hf_lmmixup.records import pair_text

        rows = pq.read_table(path).to_pylist()
        self.prompts = ["\n\n".join(filter(None, (row["instruction"], row["input"]))) for row in rows]
        self.completions = [row["output"] for row in rows]
        self.texts = [pair_text(*pair) for pair in zip(self.prompts, self.completions, strict=True)]
        self.high = np.array([bool(row["rated_high_accuracy"]) for row in rows])
        self.scores = np.where(self.high, HIGH, LOW)
        order = np.random.default_rng(SEED).permutation(len(rows))
        self.train, self.test = order[:TRAINING_ROWS], order[TRAINING_ROWS:]
        self.cache = cache
        self.pairs = self.embedded("pair", self.texts)
        counted = text_features(self.texts, ["qa"] * len(rows)).astype(np.float64)
        mean, deviation = counted[self.train].mean(0), counted[self.train].std(0)
        self.features = np.clip((counted - mean) / np.maximum(deviation, 1e-6), -3, 3)

    def embedded(self, name: str, texts: list[str]) -> np.ndarray:
        """Unit rows of some texts, computed once."""
        file = self.cache / f"{name}.npy"
        if not file.is_file():
            from hf_lmmixup.encoder import load_encoder

            print(f"embedding {len(texts)} texts ...", flush=True)
            self.cache.mkdir(parents=True, exist_ok=True)
            np.save(file, load_encoder().encode(texts))
        found = np.load(file)
        if found.shape[0] != len(texts):
            sys.exit(f"{file} belongs to other data; delete it.")
        return found


def as_posterior(chance: np.ndarray) -> np.ndarray:
    """The chance of a high verdict (n,) as a distribution over the scores (n, 6)."""
    posterior = np.zeros((len(chance), HIGH + 1))
    posterior[:, HIGH], posterior[:, LOW] = chance, 1 - chance
    return posterior


def logistic(data: Data, inputs: np.ndarray, strength: float) -> np.ndarray:
    """Chances of the test rows by logistic regression on the training rows."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=300).fit(inputs[data.train], data.high[data.train])
    return model.predict_proba(inputs[data.test])[:, 1]


def report(name: str, posterior: np.ndarray, data: Data) -> dict[str, float]:
    """Print and return the three figures of a scorer on the test rows."""
    from hf_lmmixup.quality_report import measure

    found = measure(posterior, data.scores[data.test])
    figures = "   ".join(f"{found[key]:.3f}" for key in ("auc", "spearman", "calibration_error"))
    print(f"{name:<58} {figures}", flush=True)
    return found


def baselines(data: Data, datastore: Any) -> None:
    """The four scorers to beat."""
    from hf_lmmixup.features import FEATURES as ALL

    for k in (16, 64):
        report(f"published kNN posterior, k={k}", datastore.posterior(data.pairs[data.test], "qa", k=k), data)
    report("logistic regression on the embedding", as_posterior(logistic(data, data.pairs, 1.0)), data)
    fourteen = data.features[:, [ALL.index(name) for name in FEATURES]]
    both = np.concatenate([data.pairs, fourteen / len(FEATURES) ** 0.5], axis=1)
    report("  + fourteen plain features", as_posterior(logistic(data, both, 1.0)), data)


def what_else_was_tried(data: Data, values: np.ndarray) -> None:
    """Other inputs and other learners; `values` are the head's own chances, for averages with it."""
    from hf_lmmixup.score_health import ranks

    prompts, completions = data.embedded("prompt", data.prompts), data.embedded("completion", data.completions)
    plain = data.features / data.features.shape[1] ** 0.5
    apart = np.concatenate([prompts, completions], axis=1)
    interaction = prompts * completions * prompts.shape[1] ** 0.5
    near = neighbor_scores(data, (data.pairs, prompts, completions), (16, 64, 200))
    inputs = {
        "all plain features": plain,
        "embeddings of prompt and completion": apart,
        "  + their product": np.concatenate([apart, interaction], axis=1),
        "  + their product + plain features": np.concatenate([apart, interaction, plain], axis=1),
        "plain features + neighbors' scores, three texts, k=16, 64, 200": np.concatenate([plain, near], axis=1),
        "embedding + plain features + neighbors' scores": np.concatenate([data.pairs, plain, near], axis=1),
    }
    found = {f"logistic: {name}": logistic(data, matrix, 1.0) for name, matrix in inputs.items()}
    found["gradient-boosted trees: plain features"] = boosted(data, data.features)
    found["gradient-boosted trees: plain features + neighbors' scores"] = boosted(
        data, np.concatenate([data.features, near], axis=1)
    )
    found["logistic: words and word pairs of the prompt (tf-idf)"] = words(data, data.prompts)
    found["logistic: words and word pairs of the completion (tf-idf)"] = words(data, data.completions)
    found["kernel ridge: RBF on features x RBF on embedding"] = kernel_ridge(data, plain)
    for name, chance in found.items():
        report(name, as_posterior(np.clip(chance, 0, 1)), data)
    mean = sum(ranks(chance) for chance in [values, *found.values()]) / (1 + len(found)) / len(values)
    report("mean rank of the head and all of these", as_posterior(mean), data)


def neighbor_scores(data: Data, embeddings: tuple[np.ndarray, ...], sizes: tuple[int, ...]) -> np.ndarray:
    """Mean verdict of the k nearest training rows, the row itself left out, for each embedding and k (n, E * K)."""
    from hf_lmmixup.neighbors import top_k

    columns = []
    for rows in embeddings:
        _, found = top_k(rows[data.train], rows, max(sizes) + 1)
        place = np.full(len(rows), -1)
        place[data.train] = np.arange(len(data.train))
        for k in sizes:
            others = found[:, : k + 1] != place[:, None]
            others[others.all(1), -1] = False  # a row that is not among them has one neighbor too many
            columns.append((data.high[data.train][found[:, : k + 1]] * others).sum(1) / k)
    return np.stack(columns, axis=1)


def boosted(data: Data, inputs: np.ndarray) -> np.ndarray:
    """Chances of the test rows by gradient-boosted trees."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=200, learning_rate=0.03, max_leaf_nodes=8, l2_regularization=10, random_state=SEED
    )
    return model.fit(inputs[data.train], data.high[data.train]).predict_proba(inputs[data.test])[:, 1]


def words(data: Data, texts: list[str]) -> np.ndarray:
    """Chances of the test rows by logistic regression on words and word pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=3, ngram_range=(1, 2))
    seen = vectorizer.fit_transform([texts[row] for row in data.train])
    model = LogisticRegression(max_iter=300).fit(seen, data.high[data.train])
    return model.predict_proba(vectorizer.transform([texts[row] for row in data.test]))[:, 1]


def kernel_ridge(data: Data, plain: np.ndarray) -> np.ndarray:
    """Values of the test rows by ridge regression with a product of two RBF kernels."""
    from sklearn.metrics.pairwise import rbf_kernel

    def kernel(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        near = rbf_kernel(data.pairs[rows], data.pairs[others], gamma=0.5)
        return near * rbf_kernel(plain[rows].astype(np.float32), plain[others].astype(np.float32), gamma=1.0)

    mean = data.high[data.train].mean()
    square = kernel(data.train, data.train)
    square[np.diag_indices_from(square)] += 5.0
    weights = np.linalg.solve(square, data.high[data.train] - mean)
    return mean + kernel(data.test, data.train) @ weights


def timed(way: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the seconds it took."""
    started = time.perf_counter()
    return way(), time.perf_counter() - started


def main() -> None:
    """Fit on the training rows, measure on the test rows, and end with our line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--tried", action="store_true", help="also measure what was tried besides")
    options = parser.parse_args()
    if not options.data.is_file():
        sys.exit(f"No data at {options.data}. Name the Alpaca rows with --data; this benchmark cannot run without.")
    from hf_lmmixup.datastore import build

    data = Data(options.data, options.cache)
    texts, scores = [data.texts[row] for row in data.train], data.scores[data.train].tolist()
    encoder = Stored(data.texts, data.pairs)
    datastore, learning = timed(lambda: build(texts, scores, ["qa"] * len(texts), encoder))
    print(
        f"{len(data.train)} rows to learn from, {data.high[data.train].mean():.1%} of them high; "
        f"{len(data.test)} to test"
    )
    print(f"{'':<58} AUC     Spearman  calibration error")
    baselines(data, datastore)
    asked = [data.texts[row] for row in data.test]
    expected, judging = timed(lambda: datastore.judge_embedded(asked, data.pairs[data.test], "qa"))
    chance = np.clip(expected / HIGH, 0, 1)
    judge = datastore.report["default"]
    found = report(f"ours: default judge ({judge})", as_posterior(chance), data)
    folds = datastore.report[judge]
    print(f"  on folds of the training rows: AUC {folds['auc']:.3f}, Spearman {folds['spearman']:.3f}, ", end="")
    print(f"calibration error {folds['calibration_error']:.3f}; learnt in {learning:.0f} s, ", end="")
    print(f"{1e6 * judging / len(asked):.0f} us a row")
    if options.tried:
        what_else_was_tried(data, chance)
    state = "ok" if found["auc"] >= TARGET else "short"
    print(f"quality_auc: ratio={found['auc']:.3f} target={TARGET} {state} (median of 1, spread 0.000-0.000)")


if __name__ == "__main__":
    main()
