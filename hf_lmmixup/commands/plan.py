"""`lmmixup plan`: what a run will take, and afterwards what it took."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from hf_lmmixup.commands.options import Limit
from hf_lmmixup.console import console, errors, say


UNKNOWN = "–"


def plan(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one of ours.")
    ] = None,
    input: Annotated[  # noqa: A002 -- the option's name
        str | None, typer.Option("--input", "-i", help="The rows, as for lmmixup run.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="The run directory to be.")] = None,
    limit: Limit = None,
    sample: Annotated[int, typer.Option(min=1, help="Rows that are tried.")] = 200,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=0.001, help="What the model writes, in all; else a range for its kind.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Show a run's plan beside what it took.")] = None,
) -> None:
    """Tell what a run will take: rows, tokens, time, money and disk of each stage, as ranges.

    The plan is kept in the run directory until a run begins there; `lmmixup plan --run DIR` shows it beside what the
    stages really took.

    For example:

        lmmixup plan extractive --input pile.jsonl --output runs/pile

        lmmixup plan --run runs/pile
    """
    from hf_lmmixup.inputs import check_place, short_name
    from hf_lmmixup.planning import plan as estimate
    from hf_lmmixup.recipe import load_recipe
    from hf_lmmixup.run_directory import write_json
    from hf_lmmixup.stages import PLAN, costs_of, read_plan

    with errors():
        if (recipe is None) == (run is None):
            raise ValueError("Give a RECIPE to plan, or --run to look at a run; one of the two.")
        if run is not None:
            planned, costs = read_plan(run), list(costs_of(run).values())
            if not planned and not costs:
                raise FileNotFoundError(f"{run} holds neither a plan nor the costs of a run.")
            console.print(_table(planned, costs))
            return
        if input is not None and output is None:
            output = f"runs/{short_name(input)}"
        loaded = load_recipe(str(recipe), input=input, output=output, limit=limit)
        check_place(loaded.output, loaded.input)
        planned = [asdict(one) for one in estimate(loaded, sample=sample, tokens_per_second=tokens_per_second)]
        folder = Path(loaded.output)
        has_begun = bool(costs_of(folder))
        if not has_begun:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / PLAN, planned)
    console.print(_table(planned, []))
    told = f"Not kept: a run has begun in {folder}." if has_begun else f"Kept in {folder / PLAN}."
    say(escape(told))


def _table(planned: list[dict[str, Any]], costs: list[dict[str, Any]]) -> Table:
    columns = {"rows": _count, "tokens": _count, "seconds": _time, "money": _money, "disk": _bytes}
    table = Table(title="What the stages take" if not costs else "What the stages were to take, and took")
    for name in ("stage", *columns):
        table.add_column({"seconds": "time", "money": "US dollars"}.get(name, name), justify="right")
    spent = {entry["stage"]: entry for entry in costs}
    for entry in planned:
        table.add_row(entry["stage"], *(_range(entry.get(name), show) for name, show in columns.items()))
        if taken := spent.pop(entry["stage"], None):
            table.add_row("took", *(_one(taken.get(name), show) for name, show in columns.items()), style="bold")
    for name, taken in spent.items():
        table.add_row(f"{name} took", *(_one(taken.get(key), show) for key, show in columns.items()), style="bold")
    both = planned if not costs else costs
    table.add_row("all", *(_sum(both, name, show) for name, show in columns.items()), style="bold")
    return table


def _sum(entries: list[dict[str, Any]], name: str, show: Any) -> str:
    if name == "rows":
        return ""
    values = [entry[name] for entry in entries if entry.get(name) is not None]
    if not values:
        return UNKNOWN
    if isinstance(values[0], int | float):
        return _one(sum(values), show)
    return _range((sum(value[0] for value in values), sum(value[1] for value in values)), show)


def _range(value: Any, show: Any) -> str:
    if value is None:
        return UNKNOWN
    low, high = show(value[0]), show(value[1])
    return str(low) if low == high else f"{low} to {high}"


def _one(value: Any, show: Any) -> str:
    return UNKNOWN if value is None else str(show(value))


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _money(value: float) -> str:
    return f"{value:,.2f}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"


def _bytes(value: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"
