"""What all commands share on the screen: the console, errors as one message and an exit code, a bar for each stage.

Exit codes: 0 done, 1 cannot start, 2 usage, 3 stopped by a terminal error, 4 too many rejects, or nothing came out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


CANNOT_START, USAGE, STOPPED, TOO_MANY_REJECTS, INTERRUPTED = 1, 2, 3, 4, 130

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
"""Errors of the user's input or set-up: their message is the whole story, so no traceback is shown."""

console = Console(stderr=True)


@contextmanager
def errors() -> Iterator[None]:
    """Turn expected errors into one message and an exit code."""
    try:
        yield
    except EXPECTED as error:
        console.print(f"[red]Error:[/] {plain(error)}", highlight=False, soft_wrap=True)
        raise typer.Exit(CANNOT_START) from error
    except RuntimeError as error:
        console.print(f"[red]Stopped:[/] {plain(error)}", highlight=False, soft_wrap=True)
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
            console.print(f"{title} ...", highlight=False, markup=False)

    return update


def plain(error: BaseException) -> str:
    """The message of an error, safe to print as markup."""
    return str(error).replace("[", "\\[")
