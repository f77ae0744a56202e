"""`lmmixup rate`: rows in, the same rows with `rating`, `score` and `rating_error` out."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from hf_lmmixup.commands.options import (
    AllowHttp,
    Concurrency,
    Endpoint,
    Input,
    KeyVariable,
    Limit,
    Output,
    TaskTypeName,
)
from hf_lmmixup.console import TOO_MANY_REJECTS, console, errors, progress_bar, say, tally


JOURNALS = ".journal"
"""Added to the output's name: the folder that holds what was paid for."""

Told = Callable[[int], None]


def rate(
    input: Input,  # noqa: A002 -- the argument's name
    output: Output,
    datastore: Annotated[
        str | None, typer.Option(metavar="PATH|HUB_ID|bundled", help="Score by rows that were rated before.")
    ] = None,
    endpoint: Endpoint = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="With --endpoint a name the server knows, else a folder or Hub id. Repeat to combine raters."
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="What runs a model here: transformers or vllm.")] = "transformers",
    rubric: Annotated[
        str | None, typer.Option(help="axes: four judgements as JSON. digit: one forward pass of a local model.")
    ] = None,
    task_type: TaskTypeName = "qa",
    concurrency: Concurrency = 16,
    timeout: Annotated[float, typer.Option(help="Seconds for one attempt, in all.")] = 60.0,
    temperature: Annotated[float, typer.Option(min=0, help="Of a served model's sampling.")] = 0.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest reply. A model that thinks first needs thousands.")
    ] = 256,
    structured: Annotated[
        bool, typer.Option("--schema/--no-schema", help="Hold replies to a JSON schema, where the server can.")
    ] = True,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    allow_http: AllowHttp = False,
    correct: Annotated[
        bool,
        typer.Option("--correct", help="Correct scores by the neighbors' (DS2); adds raw_score, score_confidence."),
    ] = False,
    encoder: Annotated[
        str | None, typer.Option(help="Sentence encoder for --correct; by default the offline MiniLM.")
    ] = None,
    max_rejects: Annotated[float, typer.Option(min=0, max=1, help="Share of rows that may stay unrated.")] = 0.05,
    limit: Limit = None,
) -> None:
    """Rate rows and write them with `rating`, `score` and `rating_error`.

    What a model was asked stays in OUTPUT.journal: a run that was stopped goes on when the same command is given
    again, and asks nothing twice. Exit code 3 means that the server stopped answering, or that none of its first
    32 replies could be read, 4 that too many rows got no score; the output is written all the same, with the reasons.

    For example:

        lmmixup rate pile.jsonl -o rated.parquet --datastore bundled

        lmmixup rate pile.jsonl -o rated.parquet --endpoint http://127.0.0.1:8000/v1 --model qwen2.5-7b-instruct

        lmmixup rate pile.jsonl -o rated.parquet --model Qwen/Qwen2.5-1.5B-Instruct --correct
    """
    from hf_lmmixup.stage_files import check_output, read_rows, write_rows

    served: dict[str, Any] = {
        "concurrency": concurrency,
        "timeout": timeout,
        "temperature": temperature,
        "structured": structured,
        "key_variable": key_variable,
        "allow_http": allow_http,
    }
    with errors(resumes=datastore is None):
        check_output(output, input)
        _check_raters(datastore, endpoint, model, rubric)
        if encoder is not None and not correct:
            raise ValueError("--encoder is for --correct, which is not given; a datastore knows its own encoder.")
        read = read_rows(input, limit=limit)
        with progress_bar() as update:
            if datastore is not None:
                rated = [_by_datastore(read.dataset, datastore, task_type, update)]
            else:
                rated = _by_models(
                    read.dataset,
                    model or [],
                    endpoint,
                    engine,
                    rubric,
                    max_new_tokens,
                    task_type,
                    served,
                    output,
                    update,
                )
            final = rated[0] if len(rated) == 1 else _combined(rated)
            final = _corrected(final, encoder, update) if correct else final
        write_rows(final, output)
    unrated = _tell(final, read.dropped, output)
    if unrated > max_rejects * len(final):
        say(f"[red]Too many rejects:[/] {unrated} of {len(final)} rows got no score; {max_rejects:.0%} may.")
        raise typer.Exit(TOO_MANY_REJECTS)


def _check_raters(datastore: str | None, endpoint: str | None, models: list[str] | None, rubric: str | None) -> None:
    if (datastore is None) == (not models):
        raise ValueError("Name who rates: either --datastore, or --model, with --endpoint if a server runs it.")
    if datastore is not None and endpoint is not None:
        raise ValueError("--datastore asks no server, so it does not go with --endpoint.")
    if datastore is not None and rubric is not None:
        raise ValueError("--rubric says what a model is asked, so it does not go with --datastore.")


def _by_datastore(rows: Any, name: str, task_type: str, update: Callable[[str, int, int], None]) -> Any:
    from hf_lmmixup.raters import named_datastore
    from hf_lmmixup.rating import rate_with_datastore

    update("loading the datastore", 0, 0)
    datastore, encoder = named_datastore(name)
    told = _counter(update, "rating", len(rows))
    return rate_with_datastore(rows, datastore, encoder, task_type=task_type, progress=told).dataset


def _by_models(
    rows: Any,
    models: list[str],
    endpoint: str | None,
    engine: str,
    rubric: str | None,
    max_new_tokens: int,
    task_type: str,
    served: dict[str, Any],
    output: Path,
    update: Callable[[str, int, int], None],
) -> list[Any]:
    """The rows as each model rates them; a model that rejects many rows may be made up for by another one."""
    from hf_lmmixup.raters import named
    from hf_lmmixup.rating import rate as rate_rows

    journals = output.with_name(output.name + JOURNALS)
    rated = []
    for number, name in enumerate(models):
        if not endpoint:
            update(f"loading {name}", 0, 0)
        options = {"endpoint": endpoint, "rubric": rubric, **(served if endpoint else {})}
        ((rater, form),) = named([name], engine=engine, max_new_tokens=max_new_tokens, **options)
        told = _counter(update, f"rating by {name}", len(rows))
        where = journals / str(number) if number else journals
        outcome = rate_rows(rows, rater, where, task_type=task_type, rubric=form, max_reject_rate=1.0, progress=told)
        rated.append(outcome.dataset)
    return rated


def _combined(rated: list[Any]) -> Any:
    """The median of the raters; says how far they agree."""
    from hf_lmmixup.rating import combine_ratings
    from hf_lmmixup.score_health import agreement

    for number, other in enumerate(rated[1:], start=2):
        try:
            found = agreement(rated[0]["score"][:], other["score"][:])
        except ValueError as error:  # one of them failed throughout; what the others gave still counts
            say(f"Raters 1 and {number}: {error}")
            continue
        kappa = "not defined" if found.kappa is None else f"{found.kappa:.2f}"
        say(
            f"Raters 1 and {number}: {found.exact:.0%} equal scores, {found.within_one:.0%} within one, kappa {kappa}."
        )
    return combine_ratings(rated).dataset


def _corrected(rated: Any, encoder: str | None, update: Callable[[str, int, int], None]) -> Any:
    """The rows with scores corrected by their neighbors, found in one graph."""
    from hf_lmmixup.correction import K_CORRECTION, correct_scores
    from hf_lmmixup.encoder import load_encoder
    from hf_lmmixup.neighbors import build_graph
    from hf_lmmixup.records import pair_text

    update("embedding the rows", 0, 0)
    texts = [pair_text(*pair) for pair in zip(rated["prompt"], rated["completion"], strict=True)]
    graph = build_graph(load_encoder(encoder).encode(texts), K_CORRECTION)
    update("correcting scores", 0, 0)
    corrected = correct_scores(rated, graph).dataset
    changed = sum(new != old for new, old in zip(corrected["score"], corrected["raw_score"], strict=True))
    say(f"{changed} scores corrected by their neighbors.")
    return corrected


def _counter(update: Callable[[str, int, int], None], title: str, total: int) -> Told:
    done = 0

    def told(settled: int) -> None:
        nonlocal done
        done += settled
        update(title, done, total)

    told(0)
    return told


def _tell(rated: Any, unread: dict[str, str], output: Path) -> int:
    """Say how the scores are spread; returns how many rows have none."""
    from hf_lmmixup.dispatch import counted
    from hf_lmmixup.rating import health_of

    health = health_of(rated)
    table = tally("Scores")
    for score, share in health.shares.items():
        table.add_row(str(score), f"{share:.1%}")
    for reason, count in counted(filter(None, rated["rating_error"])).items():
        table.add_row(f"none: {escape(reason)}", str(count))
    for reason, count in Counter(unread.values()).most_common():
        table.add_row(f"not read: {escape(reason)}", str(count))
    console.print(table)
    say(f"Wrote {len(rated)} rows to {escape(str(output))}.")
    return health.unrated
