"""The `lmmixup` command.

Exit codes: 0 done, 1 cannot start, 2 usage, 3 stopped by a terminal error, 4 too many rejects.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table


CANNOT_START, USAGE, STOPPED, TOO_MANY_REJECTS, INTERRUPTED = 1, 2, 3, 4, 130

EXPECTED = (ValueError, FileNotFoundError, ImportError, PermissionError)
"""Errors of the user's input or set-up: their message is the whole story, so no traceback is shown."""

app = typer.Typer(
    name="lmmixup",
    help="Instruction distillation: many weak instruction pairs in, few excellent ones out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = Console(stderr=True)


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what each stage does.")] = False,
) -> None:
    """Set up logging for all commands."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    if not verbose:
        # Progress bars of libraries would write through ours; warnings of the job are our own.
        import datasets
        import huggingface_hub.utils

        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@app.command()
def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one of ours: `quickstart`.")
    ],
    input: Annotated[  # noqa: A002 -- the option's name
        str | None,
        typer.Option("--input", "-i", help="A .jsonl, .json or .parquet file, a dataset folder, or a Hub id."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="The run directory.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read at most this many rows.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that draws.")] = None,
) -> None:
    """Do the whole job: rate, cluster, train the distiller, distil, select, merge, report.

    A run that was stopped goes on behind its last finished stage when the same command is given again.

    For example:

        lmmixup run quickstart

        lmmixup run recipes/quickstart.yaml --input pile.jsonl --output runs/pile --limit 2000
    """
    from hf_lmmixup.pipeline import run as run_recipe
    from hf_lmmixup.recipe import find_recipe, load_recipe

    if input is not None and output is None:
        output = f"runs/{Path(input).stem}"
    with errors():
        loaded = load_recipe(find_recipe(recipe), input=input, output=output, limit=limit, seed=seed)
        started = time.perf_counter()
        with progress_bar() as update:
            finished = run_recipe(loaded, progress=update)
    if not finished.worked:
        console.print(
            f"[green]Nothing to do:[/] {finished.directory} holds this run, finished. Delete it to start anew."
        )
        return
    console.print(_summary(finished.ledger))
    for note in finished.ledger["notes"]:
        console.print(f"[yellow]Note:[/] {note}")
    console.print(
        f"Done in {time.perf_counter() - started:.0f} s. Look at [bold]{finished.directory / 'report.html'}[/];\n"
        f'load the data with load_dataset("{finished.directory / "dataset"}").'
    )


@app.command()
def tiny(
    path: Annotated[Path, typer.Argument(help="The model folder to write.")] = Path("models/tiny-distiller"),
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Build the tiny distiller, untrained: a Qwen2 model with its own tokenizer, from the mini MIXTURE.

    For example:

        lmmixup tiny models/tiny-distiller && trl sft --config recipes/quickstart/sft.yaml
    """
    from hf_lmmixup.distiller import build_mini_distiller

    with errors():
        build_mini_distiller(path, seed=seed)
    console.print(f"Wrote {path}.")


@contextmanager
def errors() -> Iterator[None]:
    """Turn expected errors into one message and an exit code."""
    try:
        yield
    except EXPECTED as error:
        console.print(f"[red]Error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        raise typer.Exit(CANNOT_START) from error
    except RuntimeError as error:
        console.print(f"[red]Stopped:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        raise typer.Exit(STOPPED) from error
    except KeyboardInterrupt as error:
        console.print("Interrupted. The same command goes on from here.")
        raise typer.Exit(INTERRUPTED) from error


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar that names the stage; without a terminal, one line a stage."""
    if not console.is_terminal:
        yield _line_per_stage()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        current: dict[str, Any] = {}

        def update(title: str, done: int, total: int) -> None:
            if current.get("title") != title:
                if current:
                    bar.update(current["task"], total=1, completed=1)
                current.update(title=title, task=bar.add_task(title, total=total or None))
            bar.update(current["task"], completed=done, total=total or None)

        yield update
        if current:
            bar.update(current["task"], total=1, completed=1)


def _line_per_stage() -> Callable[[str, int, int], None]:
    seen: set[str] = set()

    def update(title: str, done: int, total: int) -> None:
        if title not in seen:
            seen.add(title)
            console.print(f"{title} ...", highlight=False)

    return update


def _summary(ledger: dict[str, Any]) -> Table:
    table = Table(title="What became of the rows", show_header=False)
    table.add_column("state")
    table.add_column("rows", justify="right")
    table.add_row("read", str(ledger["rows_in"]), style="bold")
    table.add_row("kept", str(ledger["kept"]))
    table.add_row(f"merged into {ledger['distilled_rows']} distilled rows", str(ledger["merged"]))
    for reason, count in ledger["dropped"].items():
        table.add_row(f"dropped: {reason}", str(count))
    return table


def _plain(error: BaseException) -> str:
    """The message of an error, safe to print as markup."""
    return str(error).replace("[", "\\[")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
