"""The main job: `lmmixup run`, and `lmmixup tiny` for the model that it trains offline."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from hf_lmmixup.commands.options import Limit
from hf_lmmixup.console import TOO_MANY_REJECTS, console, errors, progress_bar, say, tally


ENGINES = ("local", "ray")

RAY_ACTORS, RAY_GPUS = 2, 0.0


def run(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe file, or the name of one of ours: quickstart, extractive or training_free.",
        ),
    ],
    input: Annotated[  # noqa: A002 -- the option's name
        str | None,
        typer.Option(
            "--input",
            "-i",
            help="A .jsonl, .json or .parquet file, a dataset folder or a Hub id (OWNER/NAME[:CONFIGURATION[:SPLIT]])",
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The run directory; with --input by default in runs/.")
    ] = None,
    limit: Limit = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that draws.")] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: embed, rate and distil on a Ray cluster, with the same result.")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT|auto", help="A running Ray cluster; else one on this machine.")
    ] = None,
    ray_actors: Annotated[int, typer.Option(min=1, help="Workers that hold a model each.")] = RAY_ACTORS,
    ray_gpus: Annotated[float, typer.Option(min=0, help="GPUs of each worker.")] = RAY_GPUS,
    update: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="A finished run of this recipe on some of the rows: only what is new is computed."
        ),
    ] = None,
) -> None:
    """Do the whole job: rate, cluster, train the distiller, distil, select, merge, report.

    A run that was stopped goes on behind its last finished stage when the same command is given again, and within the
    distillation behind the last completion. Exit code 4 means that no row came out.

    For example:

        lmmixup run quickstart

        lmmixup run recipes/quickstart.yaml --input pile.jsonl --output runs/pile --limit 2000

        lmmixup run extractive --input june.jsonl --output runs/june --update runs/may
    """
    from hf_lmmixup.inputs import short_name
    from hf_lmmixup.pipeline import run as run_recipe
    from hf_lmmixup.recipe import load_recipe
    from hf_lmmixup.run_directory import LEDGER_ROWS, REPORT

    if input is not None and output is None:
        output = f"runs/{short_name(input)}"
    with errors(resumes=True):
        loaded = load_recipe(recipe, input=input, output=output, limit=limit, seed=seed)
        started = time.perf_counter()
        with progress_bar() as told, _engine(engine, loaded, ray_address, ray_actors, ray_gpus) as tools:
            finished = run_recipe(loaded, progress=told, tools=tools, update=update)
    directory = escape(str(finished.directory))
    if finished.worked:
        console.print(_summary(finished.ledger))
        for note in finished.ledger["notes"]:
            say(f"[yellow]Note:[/] {escape(note)}")
        has_page = (finished.directory / REPORT).is_file()
        look = f" Look at [bold]{directory}/{REPORT}[/]." if has_page else ""
        say(f"Done in {time.perf_counter() - started:.0f} s.{look}")
    else:
        say(f"[green]Nothing to do:[/] {directory} holds this run, finished. Delete it to start anew.")
    if not finished.ledger["kept"] and not finished.ledger["merged"]:
        read = finished.ledger["rows_in"]
        say(f"[red]Nothing came out:[/] none of {read:,} rows is in the dataset; see {directory}/{LEDGER_ROWS}.")
        raise typer.Exit(TOO_MANY_REJECTS)
    if finished.worked:
        say(f'Load the data with load_dataset("{directory}/dataset").')


@contextmanager
def _engine(engine: str, recipe: Any, address: str | None, actors: int, gpus: float) -> Iterator[Any]:
    """The tools of a run: none of its own, or those of a Ray cluster."""
    if engine not in ENGINES:
        raise ValueError(f"Unknown engine {engine!r}. Expected one of {list(ENGINES)}.")
    if engine == "local":
        if (address, actors, gpus) != (None, RAY_ACTORS, RAY_GPUS):
            raise ValueError("--ray-address, --ray-actors and --ray-gpus are for --engine ray, which is not given.")
        yield None
        return
    from hf_lmmixup.ray_engine import Pool, cluster_tools, connected

    with connected(address):
        yield cluster_tools(recipe, Pool(actors=actors, gpus=gpus))


def tiny(
    path: Annotated[Path, typer.Argument(help="The model folder to write.")] = Path("models/tiny-distiller"),
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Build the tiny distiller: a Qwen2 model with its own tokenizer, from the mini MIXTURE.

    It is not trained yet, but has read the texts of the mini as plain text, which takes some minutes.

    For example:

        lmmixup tiny models/tiny-distiller && trl sft --config recipes/quickstart/sft.yaml
    """
    from hf_lmmixup.distiller import build_mini_distiller

    with errors():
        build_mini_distiller(path, seed=seed)
    say(f"Wrote {escape(str(path))}.")


def _summary(ledger: dict[str, Any]) -> Table:
    table = tally("What became of the rows")
    table.add_row("read", str(ledger["rows_in"]), style="bold")
    table.add_row("kept", str(ledger["kept"]))
    table.add_row(f"merged into {ledger['distilled_rows']} distilled rows", str(ledger["merged"]))
    for reason, count in ledger["dropped"].items():
        table.add_row(f"dropped: {escape(reason)}", str(count))
    return table
