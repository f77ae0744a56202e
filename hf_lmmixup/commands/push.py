"""`lmmixup push`: a run's dataset, distiller, datastore or report on the Hub, private unless asked otherwise."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from hf_lmmixup.console import console, errors, say, tally


app = typer.Typer(help="Publish what a run made on the Hub; private unless you say `--public`.", no_args_is_help=True)

LISTED = 12
"""Files that are named one by one."""

Folder = Annotated[Path, typer.Argument(metavar="PATH", help="A run directory, or the artifact in it.")]
Repository = Annotated[str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME on the Hub.")]
Public = Annotated[bool, typer.Option("--public", help="Let everybody read it.")]
License = Annotated[
    str | None, typer.Option(metavar="ID", help="Hub license id of your own raw rows; others are inherited.")
]
Tag = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the tag; by default a digest of the files.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would leave, and send nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before something becomes public.")]


@app.command()
def dataset(
    path: Folder,
    repo_id: Repository,
    public: Public = False,
    license: License = None,  # noqa: A002 -- the option's name
    tag: Tag = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Publish a distilled dataset; `load_dataset(REPO_ID)` reads it without this package.

    For example:

        lmmixup push dataset runs/quickstart ada/quickstart-distilled
    """
    _push("dataset", path, repo_id, public, tag, dry_run, yes, license=license)


@app.command()
def distiller(
    path: Folder,
    repo_id: Repository,
    public: Public = False,
    license: License = None,  # noqa: A002 -- the option's name
    tag: Tag = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="Hub id of an adapter's base model that is a local folder.")
    ] = None,
    merge_adapter: Annotated[
        bool, typer.Option("--merge-adapter", help="Publish an adapter merged into its base model.")
    ] = False,
    datasets: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            metavar="REPO_ID",
            help="Hub id of a dataset that it was trained on, for the card; its license is inherited, too. May be "
            "given several times.",
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Publish a distiller: a whole model, or a LoRA adapter.

    For example:

        lmmixup push distiller runs/quickstart ada/quickstart-distiller
    """
    options = {"base_model": base_model, "merge_adapter": merge_adapter, "datasets": datasets or []}
    _push("distiller", path, repo_id, public, tag, dry_run, yes, license=license, **options)


@app.command()
def datastore(
    path: Folder,
    repo_id: Repository,
    public: Public = False,
    license: License = None,  # noqa: A002 -- the option's name
    tag: Tag = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Publish a datastore; `ScoredDatastore.from_pretrained(REPO_ID)` reads it.

    For example:

        lmmixup push datastore runs/quickstart ada/quickstart-datastore
    """
    _push("datastore", path, repo_id, public, tag, dry_run, yes, license=license)


@app.command()
def report(
    path: Folder,
    repo_id: Repository,
    public: Public = False,
    license: License = None,  # noqa: A002 -- the option's name
    tag: Tag = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Publish the report of a run as a static Space.

    For example:

        lmmixup push report runs/quickstart ada/quickstart-report
    """
    _push("report", path, repo_id, public, tag, dry_run, yes, license=license)


def _push(
    kind: str, path: Path, repo_id: str, public: bool, tag: str | None, dry_run: bool, yes: bool, **options: Any
) -> None:
    from hf_lmmixup.hub import prepare, publish

    with errors(resumes=True):
        publication = prepare(kind, path, repo_id, **options)
        console.print(_contents(publication.files))
        licenses = ", ".join(publication.licenses)
        say(f"License: {licenses}. Visible to {'everybody' if public else 'you alone'}.")
        if dry_run:
            say("Nothing was sent: this was a dry run.")
            return
        if public and not yes and sys.stdin.isatty():
            typer.confirm(f"Publish {repo_id} for everybody?", abort=True, err=True)
        pushed = publish(publication, public=public, tag=tag)
    if pushed.commits:
        done = f"[green]Pushed[/] {len(pushed.uploaded)} files"
        done += f" and removed {len(pushed.deleted)}" if pushed.deleted else ""
    else:
        done = "[green]Nothing to send:[/] the Hub holds these files already"
    say(f"{done}; read back and tagged {escape(pushed.tag)}.")
    say(f"{pushed.url} ({'private' if pushed.private else 'public'})")


def _contents(files: Any) -> Table:
    """The files that leave, largest first, with their sizes."""
    table = tally("What leaves this machine")
    ordered = sorted(files, key=lambda file: (-file.size, file.name))
    for file in ordered[:LISTED]:
        table.add_row(escape(file.name), f"{file.size:,}")
    if rest := ordered[LISTED:]:
        table.add_row(f"and {len(rest)} more", f"{sum(file.size for file in rest):,}")
    return table
