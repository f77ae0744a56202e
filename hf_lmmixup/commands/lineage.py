"""`lmmixup explain` and `lmmixup withdraw`: the story of one row, and a dataset without some sources."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from hf_lmmixup.console import console, errors, say


Run = Annotated[Path, typer.Option("--run", help="The run directory.")]


def explain(
    row: Annotated[str, typer.Argument(metavar="ROW_ID", help="A row, or the place of a reject (pile.jsonl:17).")],
    run: Run,
) -> None:
    """Tell where a row came from, what each stage made of it, and where it ended.

    For example:

        lmmixup explain 5f1d0c8f1f0b7a52 --run runs/quickstart
    """
    from hf_lmmixup.lineage import story

    with errors():
        steps = story(run, row)
    table = Table(title=f"Row {escape(row)}", show_header=False)
    for step in steps:
        table.add_row(step.stage, escape(step.text))
    console.print(table)


def withdraw(
    run: Run,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new dataset.")],
    ids: Annotated[list[str] | None, typer.Option("--id", help="A raw row to withdraw; repeat for more.")] = None,
    ids_file: Annotated[Path | None, typer.Option(help="A text file with one id a line.")] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Withdraw all rows with this value in their column source.")
    ] = None,
) -> None:
    """Write a dataset anew without some raw rows, and without what was distilled from them.

    For example:

        lmmixup withdraw --run runs/pile --source forum.jsonl --output datasets/pile-without-forum
    """
    from hf_lmmixup.inputs import check_place
    from hf_lmmixup.lineage import withdraw as take_out

    with errors():
        check_place(output)
        named = list(ids or [])
        if ids_file is not None:
            try:
                named += ids_file.read_text(encoding="utf-8-sig").split()  # with or without a byte order mark
            except UnicodeDecodeError as error:
                raise ValueError(f"{ids_file} is no text in UTF-8: {error}. Save it as such.") from error
        if not named and not source:
            raise ValueError("Say what to withdraw: --id, --ids-file or --source.")
        done = take_out(run, output, ids=named, sources=source or [])
    say(
        f"{len(done.withdrawn):,} raw rows withdrawn, {len(done.dropped):,} rows of the dataset with them; "
        f"{done.left:,} rows are left in {escape(str(output))}."
    )
    if done.orphans:
        say(
            f"{len(done.orphans):,} other raw rows were merged into what is gone; they are listed in withdrawn.json. "
            f"To distil them again, run the recipe on the remaining input with --update {escape(str(run))}."
        )
