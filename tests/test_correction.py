import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.correction import (
    correct,
    correct_scores,
    estimate_errors,
    misrated_share,
    neighbor_agreement,
    triples,
    votes_of,
)
from hf_lmmixup.neighbors import build_graph
from hf_lmmixup.records import RATED, SCORES, row_id


CLASSES = np.array(SCORES)


def planted(n=2000, clusters=100, seed=0):
    """Rows in tight clusters of one true score each, and what a rater with known errors gave them."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, 6, clusters)[which := generator.integers(0, clusters, n)]
    embeddings = generator.normal(size=(clusters, 32))[which] + 0.3 * generator.normal(size=(n, 32))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    errors = np.full((6, 6), 0.06) + 0.64 * np.eye(6)
    errors[3] = [0, 0.05, 0.15, 0.6, 0.2, 0]
    given = np.array([generator.choice(6, p=errors[score]) for score in true])
    return embeddings, true, given, errors


@pytest.fixture(scope="module")
def noisy():
    embeddings, true, given, errors = planted()
    return build_graph(embeddings, 10), true, given, errors


def test_planted_errors_are_found_and_most_of_them_corrected(noisy):
    graph, true, given, errors = noisy
    found = correct(given, graph.indices)
    assert np.abs(found.errors.matrix - errors).max() < 0.12
    assert np.abs(found.errors.prior - np.bincount(true, minlength=6) / len(true)).max() < 0.03
    assert (given == true).mean() < 0.7 and (found.scores == true).mean() > 0.93
    changed = found.scores != given
    assert (found.scores == true)[changed].mean() > 0.95
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all() and (found.confidence[changed] >= 0.5).all()
    # The confidence tells right from wrong.
    assert found.confidence[found.scores == true].mean() > found.confidence[found.scores != true].mean()


def test_right_ratings_are_left_alone(noisy):
    graph, true, _, _ = noisy
    found = correct(true, graph.indices)
    assert (found.scores == true).mean() > 0.99 and np.diag(found.errors.matrix).min() > 0.95


def test_scores_that_neighbors_say_nothing_about_are_left_alone(caplog):
    """The published method replaces a quarter of scores that are independent of their neighbors'."""
    generator = np.random.default_rng(1)
    given, indices = generator.integers(0, 6, 3000), generator.integers(0, 3000, (3000, 10))
    found = correct(given, indices)
    assert (found.scores == given).all() and not found.trusted and abs(found.agreement) < 0.05
    assert (correct(given, indices, check=False).scores != given).mean() > 0.2
    embeddings = generator.normal(size=(60, 8)).astype(np.float32)
    graph = build_graph(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), 10)
    outcome = correct_scores(rated(given[:60].tolist()), graph)
    assert outcome.dataset["score"][:] == given[:60].tolist()
    assert "No score was corrected: neighbors agree no more than by chance" in caplog.text


def test_the_result_depends_on_the_seed_alone_and_a_threshold_of_one_changes_nothing(noisy):
    graph, _, given, _ = noisy
    one, two = correct(given, graph.indices, seed=3), correct(given, graph.indices, seed=3)
    assert (one.scores == two.scores).all() and (one.confidence == two.confidence).all()
    assert (correct(given, graph.indices, min_confidence=1).scores == given).all()
    few = [(correct(given, graph.indices, min_confidence=least).scores != given).sum() for least in (0.5, 0.7, 0.8)]
    assert few == sorted(few, reverse=True) and few[0] > few[2]


# ---- against plain loops ----


def looped_triples(own, indices, size):
    counts = np.zeros((size, size, size), int)
    for row, near in enumerate(indices):
        if len(near) >= 2 and near[0] >= 0 and near[1] >= 0:
            counts[own[row], own[near[0]], own[near[1]]] += 1
    return counts


def looped_errors(counts, steps):
    """Expectation maximization, one triple at a time."""
    size = len(counts)
    chances = [[0.7 if i == j else 0.3 / (size - 1) for j in range(size)] for i in range(size)]
    share = [float((counts[a].sum() + 0.01 / size) / (counts.sum() + 0.01)) for a in range(size)]
    for _ in range(steps):
        drawn = [[0.0] * size for _ in range(size)]
        true = [0.0] * size
        for i, j, l in np.ndindex(size, size, size):  # noqa: E741 -- the names of the formula
            joint = [share[a] * chances[a][i] * chances[a][j] * chances[a][l] for a in range(size)]
            for a in range(size):
                weight = joint[a] / sum(joint) * (counts[i, j, l] + 0.01 / size**3)
                true[a] += weight
                for score in (i, j, l):
                    drawn[a][score] += weight
        chances = [[value / sum(row) for value in row] for row in drawn]
        share = [value / sum(true) for value in true]
    return np.array(chances), np.array(share)


def looped_correction(own, indices, misrated, size, rounds, seed):
    """The rounds of votes, row by row."""
    n = len(own)
    seen, caught, suggested = [0] * n, [0] * n, [[0] * size for _ in range(n)]
    generator = np.random.default_rng(seed)
    for _ in range(rounds):
        draw = generator.random(n)
        votes = {}
        for row in range(n):
            near = [own[other] for other in indices[row] if other >= 0 and draw[other] < 0.5]
            if draw[row] < 0.5 and near:
                votes[row] = [near.count(score) for score in range(size)]
        for score in range(size):
            rows = [row for row in votes if own[row] == score]
            rows.sort(key=lambda row: (votes[row][score] / np.sqrt(np.square(votes[row]).sum()), draw[row]))  # noqa: B023
            for row in rows[: int(np.rint(len(rows) * misrated[score]))]:
                others = [other for other in range(size) if other != score and votes[row][other]]
                if others:
                    best = max(others, key=lambda other: (votes[row][other], -abs(other - score), -other))  # noqa: B023
                    caught[row] += 1
                    suggested[row][best] += 1
        for row in votes:
            seen[row] += 1
    return seen, caught, suggested


graphs = st.integers(3, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 5), min_size=n, max_size=n),
        st.lists(st.lists(st.integers(-1, n - 1), min_size=4, max_size=4), min_size=n, max_size=n),
    )
)


@settings(max_examples=25, deadline=None)
@given(graphs, st.integers(0, 5))
def test_everything_is_what_a_plain_loop_finds(graph, seed):
    own, indices = np.array(graph[0]), np.array(graph[1])
    counts = triples(own, indices, 6)
    assert (counts == looped_triples(own, indices, 6)).all()
    found = correct(own, indices, rounds=5, seed=seed, min_confidence=0, check=False)
    misrated = misrated_share(found.errors)
    joint = [[found.errors.prior[a] * found.errors.matrix[a, i] for i in range(6)] for a in range(6)]
    assert misrated == pytest.approx([1 - joint[i][i] / max(1e-300, sum(row[i] for row in joint)) for i in range(6)])
    seen, caught, suggested = looped_correction(own, indices, misrated, 6, 5, seed)
    for row in range(len(own)):
        doubt = (caught[row] + 1) / (seen[row] + 2)
        best = int(np.argmax(suggested[row]))
        sure = doubt * (suggested[row][best] + 1) / (caught[row] + 6)
        changed = caught[row] > 0 and doubt > 0.5
        assert found.scores[row] == (best if changed else own[row])
        assert found.confidence[row] == pytest.approx(sure if changed else 1 - doubt)


def test_the_estimate_is_that_of_a_plain_loop_and_its_likelihood_rises(noisy, monkeypatch):
    graph, _, given, _ = noisy
    counts = triples(given, graph.indices, 6)
    likelihoods = []
    for steps in (1, 2, 5):
        monkeypatch.setattr("hf_lmmixup.correction.STEPS", steps)
        found = estimate_errors(counts, CLASSES)
        chances, share = looped_errors(counts, steps)
        assert found.matrix == pytest.approx(chances) and found.prior == pytest.approx(share)
        triple = np.einsum("a,ai,aj,al->ijl", found.prior, found.matrix, found.matrix, found.matrix)
        likelihoods.append((counts * np.log(triple)).sum())
    assert likelihoods == sorted(likelihoods)


def test_agreement_is_cohens_kappa():
    counts = np.zeros((2, 2, 2), int)
    counts[0, 0, 1], counts[0, 1, 0], counts[1, 1, 1], counts[1, 0, 1] = 40, 10, 30, 20
    # Of 100 rows 70 agree with their nearest neighbor; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5 would.
    assert neighbor_agreement(counts) == pytest.approx(((0.7 - 0.5) / 0.5, 0.1))
    assert neighbor_agreement(np.zeros((2, 2, 2), int)) == (0.0, 1.0)


def test_votes_count_only_neighbors_that_are_there():
    own, indices = np.array([0, 1, 1, 5]), np.array([[1, 2, 3], [0, 2, -1], [3, -1, -1], [-1, -1, -1]])
    here = np.array([True, True, False, True])
    assert votes_of(own, indices, here, 6).tolist() == [
        [0, 1, 0, 0, 0, 1],  # row 2 is not there
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0],
    ]


def test_what_cannot_be_corrected():
    with pytest.raises(ValueError, match="Score 7 is not one of the classes"):
        correct(np.array([7]), np.zeros((1, 0), int))
    with pytest.raises(ValueError, match="min_confidence=2 must lie between 0 and 1"):
        correct(np.array([1]), np.zeros((1, 0), int), min_confidence=2)
    assert correct(np.array([1, 2]), np.array([[1], [0]])).scores.tolist() == [1, 2]  # one neighbor tells nothing
    assert correct(np.zeros(0, int), np.zeros((0, 0), int)).scores.tolist() == []


# ---- datasets ----


def rated(scores):
    pairs = [(f"question {number}", f"answer {number}") for number in range(len(scores))]
    prompts, completions = zip(*pairs, strict=True)
    columns = {
        "id": [row_id(*pair) for pair in pairs],
        "prompt": prompts,
        "completion": completions,
        "source": ["x"] * len(pairs),
        "rating": [None] * len(pairs),
        "score": scores,
        "rating_error": [None] * len(pairs),
    }
    return Dataset.from_dict(columns, features=RATED)


def test_rows_without_a_score_keep_none_and_have_no_vote(noisy):
    graph, _, given, _ = noisy
    scores = given.tolist()
    for row in range(0, 2000, 10):
        scores[row] = None
    outcome = correct_scores(rated(scores), graph)
    known = [row for row in range(2000) if row % 10]
    alone = correct(given[known], graph.take(np.array(known)).indices)
    assert outcome.dataset["raw_score"][:] == scores and outcome.dropped == {}
    assert [outcome.dataset["score"][row] for row in known] == alone.scores.tolist()
    assert outcome.dataset["score"][10] is None and outcome.dataset["score_confidence"][10] is None
    assert outcome.dataset["score_confidence"][1] == pytest.approx(alone.confidence[0])
    again = correct_scores(outcome.dataset, graph)  # a second pass replaces the columns
    assert sorted(again.dataset.column_names) == sorted(outcome.dataset.column_names)


def test_a_graph_of_other_rows_is_refused(noisy):
    with pytest.raises(ValueError, match="has 2000 rows and the dataset 3"):
        correct_scores(rated([1, 2, 3]), noisy[0])
