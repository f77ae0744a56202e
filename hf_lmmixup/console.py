"""What all commands share on the screen: the console, errors as one message and an exit code, a bar for each stage.

The exit codes stand in the help of the command; 2, wrong usage, is given by `typer`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table


logger = logging.getLogger(__name__)

CANNOT_START, STOPPED, TOO_MANY_REJECTS, INTERRUPTED = 1, 3, 4, 130

EXPECTED = (
    ValueError,
    ImportError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    ConnectionError,
)
"""Errors of the user's input or set-up: their message is the whole story; `--verbose` shows the traceback."""

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print a sentence with its markup; long paths in it are not broken, so that they can be copied."""
    console.print(text, soft_wrap=True)


def tally(title: str) -> Table:
    """An empty table without a head: what is counted, and the numbers at the right."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    return table


@contextmanager
def errors(*, resumes: bool = False) -> Iterator[None]:
    """Turn expected errors into one message and an exit code.

    Args:
        resumes: Whether the same command goes on where it was interrupted.
    """
    try:
        yield
    except EXPECTED as error:
        logger.info("Raised here:", exc_info=True)
        say(f"[red]Error:[/] {escape(str(error))}")
        raise typer.Exit(CANNOT_START) from error
    except (RuntimeError, OSError) as error:  # a full disk, too
        logger.info("Raised here:", exc_info=True)
        say(f"[red]Stopped:[/] {escape(str(error))}")
        raise typer.Exit(STOPPED) from error
    except KeyboardInterrupt as error:
        say(f"Interrupted. The same command {'goes on from here' if resumes else 'begins anew'}.")
        raise typer.Exit(INTERRUPTED) from error


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar that names the stage; without a terminal, one line a stage."""
    if not console.is_terminal:
        yield _line_per_stage()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
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
            say(f"{escape(title)} ...")

    return update
