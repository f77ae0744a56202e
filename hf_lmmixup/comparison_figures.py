"""Figures that compare: what models learn from different data, and what each stage of a run cost."""

from typing import Any

from hf_lmmixup.figures import DISTILLED, MISSING, ORIGINAL, Facts, Figure, decimal, finite, signed, slug


def arms(facts: Facts) -> list[Figure]:
    """Results of models trained on different data at equal cost, one figure per metric.

    `facts["arms"]`: a list of `arm`, `metric` and `mean`; where known `low` and `high` (ends of the interval),
    `seeds`, `tokens`, `steps`, and `difference` to the full raw rows with `difference_low` and `difference_high`.
    """
    entries = facts.get("arms") or []
    metrics = dict.fromkeys(str(entry["metric"]) for entry in entries)
    return [_arms_of(metric, [entry for entry in entries if str(entry["metric"]) == metric]) for metric in metrics]


def _arms_of(metric: str, entries: list[dict[str, Any]]) -> Figure:
    bounds = [(finite(entry.get("low")), finite(entry.get("high"))) for entry in entries]
    dots: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": metric,
        "x": [finite(entry.get("mean")) for entry in entries],
        "y": [str(entry["arm"]) for entry in entries],
        "marker": {"color": DISTILLED, "size": 11},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_reach(high, entry) for (_, high), entry in zip(bounds, entries, strict=True)],
            "arrayminus": [_reach(low, entry) for (low, _), entry in zip(bounds, entries, strict=True)],
            "color": ORIGINAL,
            "thickness": 2,
        },
    }
    return Figure(
        f"arms-{slug(metric)}",
        f"What models learn from it: {metric}",
        "Each dot is a model trained on one kind of data; its line is the 95 % interval over test rows and seeds. The "
        "difference to the full raw rows is paired by row and seed, so its interval is the one to look at.",
        [dots],
        {"xaxis": {"title": metric}, "yaxis": {"autorange": "reversed", "type": "category"}},
        ["data", "mean", "interval", "above full raw", "interval of that", "seeds", "tokens", "steps"],
        [_arm_row(entry, interval) for entry, interval in zip(entries, bounds, strict=True)],
        height=90 + 38 * len(entries),
        wide=True,
        open=True,
    )


def _arm_row(entry: dict[str, Any], interval: tuple[float | None, float | None]) -> list[str]:
    above = finite(entry.get("difference"))
    ends = finite(entry.get("difference_low")), finite(entry.get("difference_high"))
    counts = [_count(entry.get(name)) for name in ("seeds", "tokens", "steps")]
    difference = [MISSING if above is None else signed(above), _between(ends)]
    return [str(entry["arm"]), decimal(entry.get("mean")), _between(interval), *difference, *counts]


def _between(ends: tuple[float | None, float | None]) -> str:
    return MISSING if None in ends else f"{decimal(ends[0])} to {decimal(ends[1])}"


def costs(facts: Facts) -> Figure | None:
    """What each stage of a run cost.

    `facts["costs"]`: a list of `stage` and `seconds`; where known `rows`, `tokens` and `money` (US dollars).
    """
    stages = facts.get("costs") or []
    if not stages:
        return None
    seconds = [finite(entry.get("seconds")) or 0.0 for entry in stages]
    names = [str(entry["stage"]) for entry in stages]
    bars: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "x": seconds,
        "y": names,
        "name": "seconds",
        "marker": {"color": DISTILLED},
        "hovertemplate": "%{y}: %{x:,.1f} s<extra></extra>",
    }
    rows = [
        [name, f"{spent:,.1f}", *(_count(entry.get(key)) for key in ("rows", "tokens")), _money(entry.get("money"))]
        for name, spent, entry in zip(names, seconds, stages, strict=True)
    ]
    money = [value for entry in stages if (value := finite(entry.get("money"))) is not None]
    rows.append(["all", f"{sum(seconds):,.1f}", MISSING, MISSING, _money(sum(money) if money else None)])
    return Figure(
        "costs",
        "What it cost",
        "Time, texts and money by stage.",
        [bars],
        {"xaxis": {"title": "seconds"}, "yaxis": {"autorange": "reversed", "type": "category"}},
        ["stage", "seconds", "rows", "tokens", "US dollars"],
        rows,
        height=90 + 30 * len(stages),
        wide=True,
    )


def _reach(bound: float | None, entry: dict[str, Any]) -> float:
    mean = finite(entry.get("mean"))
    return 0.0 if bound is None or mean is None else abs(bound - mean)


def _count(value: Any) -> str:
    number = finite(value)
    return MISSING if number is None else f"{number:,.0f}"


def _money(value: Any) -> str:
    number = finite(value)
    return MISSING if number is None else f"{number:,.2f}"
