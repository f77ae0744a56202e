"""What must hold in every run, whatever comes out: checked, not assumed. A run that breaks one of these fails.

pool 599 = high 87 + low 512 + unrated 0        low 512 = sources 487 + dropped 25        steps of all arms equal
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.proof import arms
from benchmarks.proof.tiers import Tier
from benchmarks.proof.world import Split


STEPS_APART = 0.1
"""A batch is full when the next row does not fit, so long rows, such as mosaics, take a few steps more."""
REFINED = (arms.DISTILLED, arms.SHUFFLED, arms.UNTRAINED)


def audit(
    worlds: Sequence[Mapping[str, Any]], results: Mapping[str, Sequence[Mapping[str, Any]]], parted: Split, tier: Tier
) -> list[str]:
    """Check a finished run.

    Args:
        worlds: The facts of each seed's pool and distillations.
        results: The results of each arm, one a seed.
        parted: Who was for teaching and who for the examination.
        tier: The sizes.

    Returns:
        One line for each thing checked.

    Raises:
        RuntimeError: If one does not hold; the message says which, and the figures.
    """
    parted.check()
    said = [f"teaching and examined characters are disjoint ({len(parted.teaching)} and {_examined(parted)})"]
    for facts in worlds:
        _ledger(facts)
    said.append(f"the ledgers of {len(worlds)} pools and {len(worlds) * len(REFINED)} distillations balance")
    expected = {*arms.ARMS, *([arms.LONG_RAW] if tier.long_raw else [])}
    _hold(set(results) == expected, f"arms {sorted(results)} instead of {sorted(expected)}")
    said.append(f"{len(expected)} arms, the controls {arms.SHUFFLED} and {arms.UNTRAINED} among them")
    for seed in range(tier.seeds):
        taught = [results[arm][seed] for arm in arms.ARMS if results[arm][seed]["rows"]]
        steps = [run["steps"] for run in taught]
        tokens = [run["tokens"][-1] for run in taught]
        _hold(max(steps) - min(steps) <= max(1, STEPS_APART * max(steps)), f"seed {seed}: unequal steps {steps}")
        _hold(max(tokens) - min(tokens) <= tier.step_tokens, f"seed {seed}: unequal tokens {tokens}")
    return [*said, f"every arm has seen the same number of tokens, in as many steps (at most {STEPS_APART:.0%} apart)"]


def _ledger(facts: Mapping[str, Any]) -> None:
    pool = facts["pool"]
    parts = {name: pool[name] for name in ("high", "low", "unrated")}
    _hold(pool["rows"] == sum(parts.values()), f"{pool['rows']} rows in the pool, but {parts}")
    for name in REFINED:
        made = facts[name]
        gone = made["sources"] + sum(made["dropped"].values())
        _hold(gone == pool["low"], f"{name}: {pool['low']} low rows, but {made['sources']} used and {made['dropped']}")
        _hold(made["selected"] <= made["distilled"], f"{name}: more rows selected than distilled")


def _examined(parted: Split) -> int:
    return sum(map(len, parted.downstream))


def _hold(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(f"The proof is broken: {otherwise}.")
