"""Figures about the distiller of a run: rewards on held-out prompts, rewards and losses of its trainings by step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_lmmixup.figures import (
    AFTER,
    DISTILLED,
    ORIGINAL,
    REWARDS,
    SERIES,
    Facts,
    Figure,
    by_model,
    capital,
    category,
    decimal,
    finite,
    given_scores,
    lying,
    plain,
    score_text,
    score_title,
    signed,
    slug,
)


History = Sequence[Mapping[str, Any]]
"""Log entries of a trainer: `step`, `loss`, `reward`, `rewards/quality_reward/mean` and others."""

EDGE_SHARE = 0.2
"""Share of the logged steps at either end that stand for the start and the end of a training."""


@dataclass(frozen=True)
class Edges:
    """A quantity at the start and at the end of a training: means over the first and last logged steps."""

    start: float
    end: float
    points: int


def held_out_rewards(facts: Facts) -> Figure | None:
    """Mean rewards on held-out prompts, by state of the distiller."""
    judged = by_model(facts, "held_out")
    names = [name for name in REWARDS if any(result.get(name) is not None for result in judged.values())]
    if not names:
        return None
    colors = [ORIGINAL, DISTILLED, AFTER, *SERIES]
    data = [
        {
            "type": "bar",
            "name": state,
            "x": names,
            "y": [finite(result.get(name)) for name in names],
            "marker": {"color": colors[place % len(colors)]},
            "hovertemplate": "%{x}: %{y:.3f}<extra>" + plain(state) + "</extra>",
        }
        for place, (state, result) in enumerate(judged.items())
    ]
    layout = {"barmode": "group", "xaxis": category(""), "yaxis": {"title": "mean reward", "rangemode": "tozero"}}
    prompts = max(int(result.get("prompts") or 0) for result in judged.values())
    return Figure(
        "held-out",
        "Rewards on held-out prompts",
        f"Means over {prompts:,} prompts of topics that no training saw. A dash: the reward abstained.",
        data,
        layout,
        ["distiller", *names],
        [[state, *(decimal(result.get(name)) for name in names)] for state, result in judged.items()],
        narrow=lying(data, layout),
        wide=True,
        open=True,
    )


def systems(facts: Facts) -> Figure | None:
    """Mean scores of several systems on the test split: what `lmmixup evaluate` found.

    `facts["mixture_test"]`: `data`, `rows` and `systems`, a list of `system`, `rows`, `means` and `judged`.
    """
    found = facts.get("mixture_test") or {}
    entries = found.get("systems") or []
    names = given_scores(entries)
    if not names:
        return None
    shares = [name for name in names if name not in ("length", "rating")]
    colors = [ORIGINAL, DISTILLED, AFTER, SERIES[2], SERIES[4], SERIES[0]]
    data = [
        {
            "type": "bar",
            "name": str(entry["system"]),
            "x": [score_title(name) for name in shares],
            "y": [finite(entry["means"].get(name)) for name in shares],
            "marker": {"color": colors[place % len(colors)]},
            "hovertemplate": "%{x}: %{y:.3f}<extra>" + plain(str(entry["system"])) + "</extra>",
        }
        for place, entry in enumerate(entries)
    ]
    layout = {"barmode": "group", "xaxis": category(""), "yaxis": {"title": "mean", "rangemode": "tozero"}}
    partial = [str(entry["system"]) for entry in entries if entry["rows"] < found["rows"]]
    remark = f" {', '.join(partial)}: only the task types that it can write." if partial else ""
    return Figure(
        "systems",
        "Systems side by side",
        f"Means over {found['rows']:,} prompts ({found['data']}); a malformed completion earns 0, a dash means that "
        f"nothing could be judged.{remark}",
        data,
        layout,
        ["system", "prompts", *map(score_title, names)],
        [
            [str(entry["system"]), f"{entry['rows']:,}", *(score_text(n, entry["means"].get(n)) for n in names)]
            for entry in entries
        ],
        narrow=lying(data, layout),
        wide=True,
        open=True,
    )


def reward_curves(title: str, history: History) -> Figure | None:
    """The total reward of a GRPO training and its components, by step."""
    keys = [key for key in _keys(history) if key.startswith("rewards/") and key.endswith("/mean")]
    curves = [("total", "reward"), *((_component(key), key) for key in keys)]
    lines = [(name, *series(history, key)) for name, key in curves]
    lines = [line for line in lines if line[1]]
    if not lines:
        return None
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(steps) < 60 else "lines",
            "name": name,
            "x": steps,
            "y": values,
            "line": {"color": SERIES[place % len(SERIES)], "width": 3.5 if name == "total" else 2},
            "marker": {"size": 6 if name == "total" else 5},
            "hovertemplate": "step %{x}: %{y:.3f}<extra>" + plain(name) + "</extra>",
        }
        for place, (name, steps, values) in enumerate(lines)
    ]
    rows = []
    for name, _, values in lines:
        ends = _edges(values)
        rows.append([name, decimal(ends.start), decimal(ends.end), signed(ends.end - ends.start)])
    points = _edges(lines[0][2]).points
    return Figure(
        f"rewards-{slug(title)}",
        f"{capital(title)}: rewards by component",
        f"Mean reward of the sampled completions at each logged step; the total is their weighted sum. In the table, "
        f"start and end are means over the first and the last {points} logged steps.",
        data,
        {"xaxis": {"title": "step"}, "yaxis": {"title": "mean reward"}},
        ["reward", "start", "end", "change"],
        rows,
        height=360,
        open=True,
    )


def loss_curve(title: str, history: History) -> Figure | None:
    """The training loss by step, and the share of tokens guessed right where it was logged."""
    steps, losses = series(history, "loss")
    if not steps:
        return None
    line = {"color": DISTILLED, "width": 2.5}
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "name": "loss", "x": steps, "y": losses, "line": line}
    ]
    layout: dict[str, Any] = {"xaxis": {"title": "step"}, "yaxis": {"title": "loss", "rangemode": "tozero"}}
    rows = [["loss", decimal(losses[0]), decimal(losses[-1])]]
    accuracy_steps, accuracies = series(history, "mean_token_accuracy")
    if accuracies:
        line = {"color": AFTER, "width": 2, "dash": "dot"}
        name = "token accuracy (right axis)"
        data.append({"type": "scatter", "mode": "lines", "name": name, "x": accuracy_steps, "y": accuracies})
        data[-1] |= {"yaxis": "y2", "line": line}
        layout["yaxis2"] = {"overlaying": "y", "side": "right", "tickformat": ".0%", "range": [0, 1]}
        layout["yaxis2"] |= {"showgrid": False, "tickvals": [0.25, 0.5, 0.75, 1]}  # 0 % would touch the last step
        rows.append(["token accuracy", decimal(accuracies[0]), decimal(accuracies[-1])])
    return Figure(
        f"loss-{slug(title)}",
        f"{capital(title)}: loss",
        "Loss on the completions of the training batches, at each logged step.",
        data,
        layout,
        ["quantity", "first", "last"],
        rows,
        open=True,
    )


def reward_edges(history: History) -> Edges | None:
    """The total reward at the start and at the end of a training; None if it was not logged twice.

    Args:
        history: Log entries of the trainer.

    Returns:
        Means over the first and the last fifth of the logged steps, at least one each.
    """
    values = series(history, "reward")[1]
    return _edges(values) if len(values) > 1 else None


def series(history: History, key: str) -> tuple[list[int], list[float]]:
    """The steps at which a quantity was logged as a finite number, and its values."""
    known = [(entry["step"], value) for entry in history if (value := finite(entry.get(key))) is not None]
    return [step for step, _ in known], [value for _, value in known]


def _edges(values: Sequence[float]) -> Edges:
    points = max(1, int(EDGE_SHARE * len(values)))
    return Edges(sum(values[:points]) / points, sum(values[-points:]) / points, points)


def _keys(history: History) -> list[str]:
    return list(dict.fromkeys(key for entry in history for key in entry))


def _component(key: str) -> str:
    """`rewards/quality_reward/mean` -> `quality`."""
    return key.removeprefix("rewards/").removesuffix("/mean").removesuffix("_reward")
