"""`lmmixup datastore`: build one from rated rows, show what one holds and how well it judges."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from hf_lmmixup.console import console, errors, progress_bar, say


app = typer.Typer(help="Rated texts as a memory that scores new ones.", no_args_is_help=True)

JUDGES = {"head": "linear head", "neighbors": "neighbors"}
MEASURES = {"auc": "AUC", "spearman": "Spearman", "calibration_error": "calibration error"}


@app.command()
def build(
    input: Annotated[  # noqa: A002 -- the argument's name
        str, typer.Argument(metavar="INPUT", help="Rated rows (.parquet, .jsonl, .json), or `bundled`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    task_type: Annotated[str, typer.Option(help="Task type of rows that name none.")] = "qa",
    encoder: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a sentence encoder; by default the offline MiniLM.")
    ] = None,
) -> None:
    """Build a datastore from rows with a `score` and `prompt` and `completion` (or `text`).

    Rows of one subject should stand together: the held-out folds are runs of consecutive rows.

    For example:

        lmmixup datastore build rated.parquet -o stores/pile

        lmmixup datastore build bundled -o stores/mini
    """
    from hf_lmmixup.datastore import build as build_store
    from hf_lmmixup.encoder import CachedEncoder, load_encoder
    from hf_lmmixup.inputs import check_place
    from hf_lmmixup.raters import BUNDLED, named_datastore
    from hf_lmmixup.stage_files import check_folder, read_scored

    with errors(), progress_bar() as update:
        if output.is_file():
            raise ValueError(f"{output} is a file. Name a folder for the datastore.")
        check_place(output)
        update("embedding the rows", 0, 0)
        loaded = CachedEncoder(load_encoder(encoder)) if encoder else None
        if input == BUNDLED:
            store, _ = named_datastore(BUNDLED, loaded)
        else:
            rows = read_scored(input, task_type)
            check_folder(output)
            store = build_store(rows.texts, rows.scores, rows.task_types, loaded or load_encoder())
            for reason, count in rows.dropped.items():
                say(f"[yellow]Note:[/] {count} rows left out: {escape(reason)}.")
        store.save(output)
    _show(store)
    say(f"Wrote {escape(str(output))}.")


@app.command()
def show(
    path: Annotated[str, typer.Argument(metavar="PATH|HUB_ID", help="The folder or Hub id of a datastore.")],
) -> None:
    """Show a datastore: its rows, its encoder, and how well each judge predicts rows it has not seen.

    For example:

        lmmixup datastore build bundled -o stores/mini && lmmixup datastore show stores/mini
    """
    from hf_lmmixup.datastore import ScoredDatastore

    with errors():
        store = ScoredDatastore.from_pretrained(path)
    _show(store)


def _show(store: Any) -> None:
    console.print(_rows_table(store))
    revision = f" at {store.encoder_revision}" if store.encoder_revision else ""
    say(f"Encoder: {escape(store.encoder)}{escape(revision)}, {store.embeddings.shape[1]} dimensions.")
    say(f"Texts whose closest row has a cosine below {store.floor:.2f} are not judged.")
    measured = {judge: store.report[judge] for judge in JUDGES if judge in store.report}
    if not measured:
        say("Too few rows to measure how well it judges; its neighbors judge.")
        return
    table = Table(title="Judging rows of the held-out folds")
    table.add_column("judge")
    for title in MEASURES.values():
        table.add_column(title, justify="right")
    for judge, figures in measured.items():
        default = " (default)" if judge == store.report["default"] else ""
        table.add_row(JUDGES[judge] + default, *(f"{figures[measure]:.3f}" for measure in MEASURES))
    console.print(table)


def _rows_table(store: Any) -> Table:
    """How many rows of each task type have each score."""
    from hf_lmmixup.records import SCORES

    table = Table(title=f"{len(store)} rows")
    table.add_column("task type")
    for score in SCORES:
        table.add_column(f"score {score}", justify="right")
    for name in sorted(store.transitions):
        own = store.scores[store.design.kinds == name]
        table.add_row(name, *(str(int((own == score).sum())) for score in SCORES))
    return table
