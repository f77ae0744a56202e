"""The `lmmixup` command.

Each command is a plain function of `hf_lmmixup.commands`; exit codes are those of `hf_lmmixup.console`.
"""

import logging
import os
from typing import Annotated

import typer

import hf_lmmixup
from hf_lmmixup.commands import (
    companions,
    compare,
    distillations,
    evaluate,
    job,
    lineage,
    plan,
    push,
    ratings,
    stages,
    stores,
    trainings,
)
from hf_lmmixup.process_environment import ENVIRONMENT


app = typer.Typer(
    name="lmmixup",
    help="Instruction distillation: many weak instruction pairs in, few excellent ones out.",
    epilog="Exit codes: 0 done, 1 cannot start, 2 usage, 3 stopped by a terminal error, 4 too many rejects, or "
    "nothing came out, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf_lmmixup {hf_lmmixup.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what each stage does, and where an error came from.")
    ] = False,
) -> None:
    """Set up logging for all commands."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    os.environ.update(ENVIRONMENT | os.environ)
    if not verbose:
        # Progress bars of libraries would write through ours; warnings of the job are our own.
        import datasets
        import huggingface_hub.utils

        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


app.command()(job.run)
app.command()(plan.plan)
app.command()(job.tiny)
app.command()(trainings.check)
app.command()(trainings.train)
app.command()(ratings.rate)
app.command()(stages.cluster)
app.command()(distillations.distill)
app.command()(stages.select)
app.command()(stages.merge)
app.command()(companions.mosaic)
app.command()(companions.confidence)
app.command()(lineage.explain)
app.command()(lineage.withdraw)
app.add_typer(stores.app, name="datastore")
app.command()(evaluate.evaluate)
app.add_typer(push.app, name="push")
app.command()(evaluate.benchmark)
app.command("benchmark-tasks")(evaluate.benchmark_tasks)
app.command()(compare.compare)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
