import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.score_health import agreement, rank_correlation, score_health


def test_a_spread_of_scores_is_healthy():
    scores = [number % 6 for number in range(60)] + [None] * 3
    health = score_health(scores, [100 + number * 7 % 13 for number in range(63)])
    assert (health.rated, health.unrated, health.warnings) == (60, 3, [])
    assert health.shares == pytest.approx(dict.fromkeys(range(6), 1 / 6))
    assert abs(health.length_correlation) < 0.3


@pytest.mark.parametrize(
    ("scores", "lengths", "warning"),
    [
        ([3] * 95 + [2] * 5, [number % 7 for number in range(100)], "95% of the rows have score 3"),
        ([number // 20 for number in range(100)], range(100), "follow text length (rank correlation 0.98)"),
        ([number // 20 for number in range(100)], range(100, 0, -1), "rank correlation -0.98"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(scores, lengths, warning):
    (said,) = score_health(scores, lengths).warnings
    assert warning in said and ("another model" in said or "second rater" in said)


@pytest.mark.parametrize(("scores", "lengths"), [([], []), ([None], [4]), ([3], [4]), ([3] * 29, range(29))])
def test_few_rows_raise_no_alarm(scores, lengths):
    assert score_health(scores, lengths).warnings == []


def plain_kappa(pairs):
    """Quadratic weighted kappa by counting: 1 - observed / expected disagreement."""
    n = len(pairs)
    observed = sum((a - b) ** 2 for a, b in pairs) / n
    expected = sum((a - b) ** 2 for a, _ in pairs for _, b in pairs) / n**2
    return None if expected == 0 else 1 - observed / expected


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40))
def test_agreement_is_what_a_plain_count_gives(pairs):
    first, second = zip(*pairs, strict=True)
    found = agreement([*first, None, 3], [*second, 3, None])
    assert found.rows == len(pairs)
    assert found.exact == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert found.within_one == pytest.approx(sum(abs(a - b) <= 1 for a, b in pairs) / len(pairs))
    kappa = plain_kappa(pairs)
    assert found.kappa is None if kappa is None else found.kappa == pytest.approx(kappa)


def test_perfect_agreement_and_its_opposite():
    scores = [0, 1, 2, 3, 4, 5]
    assert (agreement(scores, scores).kappa, agreement(scores, scores).correlation) == (1, pytest.approx(1))
    assert agreement(scores, scores[::-1]).kappa == pytest.approx(-1)
    assert agreement([3, 3], [3, 3]).kappa is None  # nothing can be said about raters that never differ


def test_raters_without_a_common_row_are_refused():
    with pytest.raises(ValueError, match="No row was rated by both"):
        agreement([1, None], [None, 1])


def plain_ranks(values):
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30))
def test_rank_correlation_is_pearson_on_mean_ranks(pairs):
    a, b = (plain_ranks(list(side)) for side in zip(*pairs, strict=True))
    mean = (len(pairs) + 1) / 2
    cross = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    scale = math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    found = rank_correlation(*zip(*pairs, strict=True))
    assert found is None if scale == 0 else found == pytest.approx(cross / scale)
