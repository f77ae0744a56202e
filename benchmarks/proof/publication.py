"""The result as Markdown, JSON and an SVG plot. What comes out is written down, whichever way it went."""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.proof import arms
from benchmarks.proof.job import write
from benchmarks.proof.tiers import Tier
from hf_lmmixup.drawings import draw
from hf_lmmixup.figures import Figure


DRAWN = {
    arms.RAW: "@series-1",
    arms.DISTILLED: "@series-2",
    arms.HIGH: "@series-3",
    arms.GOLD: "@series-4",
    arms.MAJORITY: "@series-5",
    arms.SHUFFLED: "@dropped",
}
"""Arms of the plot and their colors."""
ONE_ROW = (arms.DISTILLED, arms.SHUFFLED, arms.UNTRAINED, "random", "top-rated")
"""Arms of as many rows as the gold oracle has; the others show several wordings of a question."""
EXPLAINED = {
    arms.RAW: "the whole pool",
    "random": "as many rows as distilled, at random",
    "top-rated": "as many rows, best score first",
    arms.DISTILLED: "what the distiller wrote, selected by score",
    arms.HIGH: "with the pool's high rows",
    arms.MOSAIC: "the same, as Mosaic-IT",
    arms.SFTMIX: "the same, with SFTMix",
    arms.GOLD: "oracle: the truth",
    arms.MAJORITY: "oracle: majority vote over each character's rows",
    arms.SHUFFLED: "control: rows grouped at random",
    arms.UNTRAINED: "control: distiller with random weights",
    arms.LONG_RAW: "the whole pool, with a larger budget",
}


def verdict(summary: Mapping[str, Any]) -> str:
    """The answer to the question, in one sentence."""
    low, high = summary["arms"][arms.DISTILLED]["minus_raw_interval"]
    gain = summary["arms"][arms.DISTILLED]["minus_raw"]
    if low > 0:
        return f"Yes: distilled beats raw by {gain:.3f} [{low:.3f}, {high:.3f}] at equal tokens and steps."
    if high < 0:
        return f"No: distilled loses to raw by {-gain:.3f} [{-high:.3f}, {-low:.3f}] at equal tokens and steps."
    return f"Not shown: distilled minus raw is {gain:+.3f} [{low:.3f}, {high:.3f}], which includes 0."


def health(summary: Mapping[str, Any]) -> list[str]:
    """What must hold if the comparison is to mean anything; each line says whether it does."""
    final = {arm: facts["accuracy"] for arm, facts in summary["arms"].items()}
    checks = {
        "the gold oracle is the best of the arms with a row a character": final[arms.GOLD]
        >= max(final[arm] for arm in ONE_ROW),
        "the gold oracle beats raw": final[arms.GOLD] > final[arms.RAW],
        "shuffled clusters fail": final[arms.SHUFFLED] < final[arms.RAW],
        "an untrained distiller fails": final[arms.UNTRAINED] < final[arms.RAW],
    }
    return [f"{'ok' if holds else 'BROKEN'}: {name}" for name, holds in checks.items()]


def markdown(tier_name: str, summary: Mapping[str, Any], worlds: Sequence[Mapping[str, Any]]) -> str:
    """The report: what came out, and its tables."""
    answer = "Smoke checks the machinery; its figures mean nothing." if tier_name == "smoke" else verdict(summary)
    facts = f"Tier `{tier_name}`, {summary['seeds']} seeds, {date.today().isoformat()}, {machine()}."
    return f"{answer}\n\n{facts}\n\n{tables(summary, worlds)}"


def tables(summary: Mapping[str, Any], worlds: Sequence[Mapping[str, Any]]) -> str:
    """Arms, efficiency, checks, curves and worlds in Markdown; docs/proof.md holds them whole."""
    lines = [
        "| arm | what it is | rows | accuracy | by seed | minus raw (95 %) | gap closed | free recall |",
        "|---|---|--:|--:|---|---|--:|--:|",
    ]
    for arm, facts in summary["arms"].items():
        low, high = facts["minus_raw_interval"]
        difference = "" if arm == arms.RAW else f"{facts['minus_raw']:+.3f} [{low:+.3f}, {high:+.3f}]"
        seeds = " ".join(f"{value:.3f}" for value in facts["by_seed"])
        lines.append(
            f"| {arm} | {EXPLAINED[arm]} | {facts['rows']:.0f} | {facts['accuracy']:.3f} | {seeds} | {difference} "
            f"| {facts['gap_closed']:.2f} | {facts['recall']:.3f} |"
        )
    lines += ["", *_efficiency_lines(summary), "", *(f"- {line}" for line in health(summary)), ""]
    return "\n".join([*lines, *_curve_lines(summary), "", *_world_lines(worlds)]) + "\n"


def _efficiency_lines(summary: Mapping[str, Any]) -> list[str]:
    facts, (low, high) = summary["efficiency"], summary["gap_closed_interval"]
    closed = summary["arms"][arms.DISTILLED]["gap_closed"]
    lines = [f"Gap closed, (distilled - raw) / (gold - raw): **{closed:.2f}** [{low:.2f}, {high:.2f}]."]
    if facts["ratio"]:
        lines.append(
            f"Token efficiency: distilled reaches raw's final accuracy after {facts['distilled_reaches_raw']:,.0f} of "
            f"{facts['budget']:,.0f} tokens, **{facts['ratio']:.1f} times** fewer."
        )
    reached = facts["raw_reaches_distilled"]
    needs = f"needs {reached:,.0f} tokens" if reached else f"does not get there in {facts['raw_longer']:,.0f} tokens"
    best = max(summary["arms"].get(arms.LONG_RAW, summary["arms"][arms.RAW])["curve"]["accuracy"])
    lines.append(
        f"For distilled's final accuracy raw {needs}; with {facts['raw_longer']:,.0f} tokens it ends at "
        f"{facts['raw_longer_accuracy']:.3f} and is at {best:.3f} at its best on the way."
    )
    return lines


def _curve_lines(summary: Mapping[str, Any]) -> list[str]:
    shown = [arm for arm in arms.ARMS if len(summary["arms"][arm]["curve"]["tokens"]) > 1]
    tokens = summary["arms"][arms.RAW]["curve"]["tokens"]
    lines = ["Accuracy after so many tokens:", "", "| arm | " + " | ".join(f"{t / 1000:.0f}k" for t in tokens) + " |"]
    lines.append("|---|" + "--:|" * len(tokens))
    for arm in shown:
        values = " | ".join(f"{value:.3f}" for value in summary["arms"][arm]["curve"]["accuracy"])
        lines.append(f"| {arm} | {values} |")
    return lines


def _world_lines(worlds: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| seed | raw rows | high | clusters | purity | distilled | selected | share of pool | right facts "
        "| after SFT alone | shuffled |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for seed, facts in enumerate(worlds):
        pool, made = facts["pool"], facts[arms.DISTILLED]
        alone = facts.get("sft alone", {}).get("fact_accuracy")
        lines.append(
            f"| {seed} | {pool['rows']} | {pool['high']} | {pool['clusters']} | {pool['purity']:.2f} "
            f"| {made['distilled']} | {made['selected']} | {made['selected'] / pool['rows']:.1%} "
            f"| {made['fact_accuracy']:.3f} | {'' if alone is None else format(alone, '.3f')} "
            f"| {facts[arms.SHUFFLED]['fact_accuracy']:.3f} |"
        )
    return lines


def plot(summary: Mapping[str, Any]) -> str:
    """Accuracy against tokens as an SVG document."""
    data = [
        {
            "type": "scatter",
            "name": arm,
            "x": [round(tokens / 1000) for tokens in summary["arms"][arm]["curve"]["tokens"]],
            "y": summary["arms"][arm]["curve"]["accuracy"],
            "marker": {"color": color},
            "line": {"color": color},
        }
        for arm, color in DRAWN.items()
        if len(summary["arms"][arm]["curve"]["tokens"]) > 1
    ]
    layout = {"xaxis": {"title": "thousand tokens"}, "yaxis": {"title": "exact match"}}
    return draw(Figure("proof", "Accuracy against tokens seen", "", data, layout, [], []))


def publish(
    folder: Path, tier_name: str, tier: Tier, summary: Mapping[str, Any], worlds: Sequence[Mapping[str, Any]]
) -> str:
    """Write `proof.md`, `proof.json` and `proof.svg`; returns the Markdown."""
    text = markdown(tier_name, summary, worlds)
    (folder / "proof.md").write_text(text, encoding="utf-8")
    (folder / "proof.svg").write_text(plot(summary), encoding="utf-8")
    taught = json.loads((folder / "distiller.json").read_text(encoding="utf-8"))
    facts = {**summary, "worlds": list(worlds), "distiller": taught, "tier": vars(tier)}
    facts |= {"date": date.today().isoformat(), "machine": machine()}
    write(folder / "proof.json", _known(facts))
    return text


def _known(value: Any) -> Any:
    """The same with `None` for what is not a number, which JSON cannot write."""
    if isinstance(value, dict):
        return {name: _known(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and value != value else value


def read_worlds(folder: Path, tier: Tier) -> list[dict[str, Any]]:
    """The facts of each seed's world."""
    return [
        json.loads((folder / f"seed_{seed}" / "facts.json").read_text(encoding="utf-8")) for seed in range(tier.seeds)
    ]


def machine() -> str:
    """The processor, in a few words."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return name
    return name
