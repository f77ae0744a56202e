"""`lmmixup cluster`, `select` and `merge`: one stage each, rows in, rows out."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from hf_lmmixup.commands.options import EncoderName, Input, Output
from hf_lmmixup.console import TOO_MANY_REJECTS, console, errors, progress_bar, say


FOREIGN = "Files from elsewhere keep theirs where every row has id, prompt and completion as text."

BLOCK = 1024
"""Rows embedded between two steps of the progress bar."""


def cluster(
    input: Input,  # noqa: A002 -- the argument's name
    output: Output,
    report: Annotated[
        Path | None, typer.Option(help="The inspection page to write, .html; by default beside the output.")
    ] = None,
    min_size: Annotated[int, typer.Option(min=1, help="Fewest rows of a cluster.")] = 2,
    max_size: Annotated[int, typer.Option(min=1, help="Most rows of a cluster.")] = 5,
    mean_size: Annotated[float, typer.Option(help="Mean of the wanted sizes.")] = 3.0,
    std_size: Annotated[float, typer.Option(min=0, help="Standard deviation of the wanted sizes.")] = 1.0,
    min_similarity: Annotated[float, typer.Option(help="Smallest cosine to the row that starts a cluster.")] = 0.5,
    singletons: Annotated[str, typer.Option(help="Rows without relatives: keep, edit (a cluster of one) or drop.")] = (
        "keep"
    ),
    duplicates: Annotated[
        float | None, typer.Option(help="Drop rows with a higher cosine to a better one first; 0.99 finds copies.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the wanted sizes.")] = 0,
    encoder: EncoderName = None,
) -> None:
    """Group related rows and write them with `cluster_id`, and a page that shows what the clusters look like.

    The order of the rows has no influence. Exit code 4 means that no row is left; the reasons are in
    OUTPUT.dropped.json.

    For example:

        lmmixup cluster pile.jsonl --output clusters.parquet --duplicates 0.99
    """
    from hf_lmmixup.bounds import DEDUPLICATE, check
    from hf_lmmixup.cluster_page import render_inspection
    from hf_lmmixup.clustering import cluster as group
    from hf_lmmixup.deduplication import deduplicate
    from hf_lmmixup.inputs import short_name
    from hf_lmmixup.inspection import inspect
    from hf_lmmixup.recipe import ClusterRecipe
    from hf_lmmixup.stage_files import check_output
    from hf_lmmixup.tables import places_of, table_of

    with errors(), progress_bar() as told:
        check_output(output, input)
        wanted = ClusterRecipe(min_size, max_size, mean_size, std_size, min_similarity, singletons)
        check(DEDUPLICATE, {"max_similarity": duplicates}, "--duplicates: ")
        page = _page(report or output.with_suffix(".html"))
        rows, unread = _read(input)
        vectors = _embed(rows, encoder, told)
        graph = _graph(vectors, told)
        dropped: dict[str, str] = {}
        if duplicates is not None:
            unique = deduplicate(rows, vectors, max_similarity=duplicates, graph=graph)
            kept = places_of(table_of(unique.dataset)["id"], table_of(rows)["id"])
            dropped, rows, vectors, graph = unique.dropped, unique.dataset, vectors[kept], graph.take(kept)
        told("clustering", 0, 0)
        outcome = group(rows, vectors, graph=graph, seed=seed, **vars(wanted))
        told("inspecting the clusters", 0, 0)
        order = places_of(table_of(outcome.dataset)["id"], table_of(rows)["id"])
        inspection = inspect(outcome.dataset, vectors[order], seed=seed)
        page.write_text(render_inspection(inspection, short_name(input)), encoding="utf-8")
        write(outcome.dataset, output, unread, dropped, outcome.dropped)
    _check_left(outcome.dataset, output, len(dropped) + len(outcome.dropped))
    cohesion = "–" if inspection["cohesion"]["mean"] is None else f"{inspection['cohesion']['mean']:.3f}"
    told_of = f"{inspection['clusters']:,} clusters of {inspection['clustered']:,} rows, mean cosine {cohesion}, "
    say(f"{told_of}{inspection['singletons']:,} rows alone; see {escape(str(page))}.")


def select(
    input: Input,  # noqa: A002 -- the argument's name
    output: Output,
    size: Annotated[int | None, typer.Option(min=0, help="Most rows.")] = None,
    token_budget: Annotated[int | None, typer.Option(min=0, help="Most tokens in all.")] = None,
    min_score: Annotated[
        int, typer.Option(help="Smallest score; -1 also takes rows without one, after all others.")
    ] = 4,
    max_similarity: Annotated[float | None, typer.Option(help="Highest cosine to a row already taken.")] = None,
    encoder: EncoderName = None,
) -> None:
    """Take the best rows: by score, then by how rare they are, then by id; writes `long_tail_score`.

    Exit code 4 means that no row is left; the reasons are in OUTPUT.dropped.json.

    For example:

        lmmixup select rated.parquet --output best.parquet --token-budget 1000000 --max-similarity 0.9
    """
    from hf_lmmixup.bounds import SELECT, check
    from hf_lmmixup.selection import check_scores
    from hf_lmmixup.selection import select as take
    from hf_lmmixup.stage_files import check_output

    limits: dict[str, Any] = {"size": size, "token_budget": token_budget, "max_similarity": max_similarity}
    limits["min_score"] = None if min_score < 0 else min_score
    with errors(), progress_bar() as told:
        check_output(output, input)
        check(SELECT, limits)
        rows, unread = _read(input)
        if "score" not in rows.column_names:
            raise ValueError(f"{input} has no column score. Make it with lmmixup rate. {FOREIGN}")
        check_scores(rows)
        vectors = _embed(rows, encoder, told)
        outcome = take(rows, embeddings=vectors, graph=_graph(vectors, told), **limits)
        write(outcome.dataset, output, unread, outcome.dropped)
    _check_left(outcome.dataset, output, len(rows))


def merge(
    originals: Annotated[str, typer.Argument(metavar="ORIGINALS", help="Rows to keep as they are.")],
    distilled: Annotated[str, typer.Argument(metavar="DISTILLED", help="Distilled rows.")],
    output: Output,
    size: Annotated[int | None, typer.Option(min=0, help="Most rows in all; the paper takes 10000.")] = None,
    distilled_share: Annotated[
        float | None, typer.Option("--share", help="Wanted share of distilled rows; the paper takes 0.5.")
    ] = None,
) -> None:
    """Put originals and distilled rows into one set, the best of both sides first to be taken.

    Exit code 4 means that no row is left; the reasons are in OUTPUT.dropped.json.

    For example:

        lmmixup merge best.parquet distilled.parquet --output dataset.parquet --size 10000 --share 0.5
    """
    from hf_lmmixup.selection import BEYOND_SHARE, SAME_AS_ORIGINAL
    from hf_lmmixup.selection import merge as unite
    from hf_lmmixup.stage_files import check_output

    with errors():
        check_output(output, originals, distilled)
        (first, unread), (second, unread_too) = _read(originals), _read(distilled)
        outcome = unite(first, second, size=size, distilled_share=distilled_share)
        if BEYOND_SHARE in outcome.dropped.values():
            _note_unscored(originals, first)
            _note_unscored(distilled, second)
        both = set(first["id"][:]) & set(second["id"][:])
        twins = {row: SAME_AS_ORIGINAL for row in both if outcome.dropped[row] != SAME_AS_ORIGINAL}
        write(outcome.dataset, output, unread, unread_too, outcome.dropped, twins)
    _check_left(outcome.dataset, output, len(first) + len(second))


def _page(path: Path) -> Path:
    """The page to write; its folder is made."""
    if path.suffix != ".html" or path.is_dir():
        raise ValueError(f"The page {path} is a folder, or does not end in '.html'. Name another file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _read(source: str) -> tuple[Any, dict[str, str]]:
    """The rows in order of id, so that the order in the file has no influence, and why others could not be read."""
    from hf_lmmixup.stage_files import read_rows
    from hf_lmmixup.tables import best_first, rows_at

    loaded = read_rows(source)
    return rows_at(loaded.dataset, best_first(loaded.dataset)), loaded.dropped


def _note_unscored(name: str, rows: Any) -> None:
    if len(rows) and ("score" not in rows.column_names or set(rows["score"]) == {None}):
        say(f"[yellow]Note:[/] No row of {escape(name)} has a score, so they rank last, by id. {FOREIGN}")


def _embed(rows: Any, encoder: str | None, told: Callable[[str, int, int], None]) -> Any:
    """Unit vectors (n, d) of the rows, float16."""
    import numpy as np

    from hf_lmmixup.encoder import load_encoder
    from hf_lmmixup.vectors import texts_of

    loaded = load_encoder(encoder)
    texts, parts = list(texts_of(rows)), []
    for start in range(0, max(1, len(texts)), BLOCK):  # no rows are one empty block
        told("embedding", start, len(texts))
        parts.append(loaded.encode(texts[start : start + BLOCK]).astype(np.float16))
    return np.concatenate(parts)


def _graph(vectors: Any, told: Callable[[str, int, int], None]) -> Any:
    """The neighbor graph, and how true it is where it is not exact."""
    from hf_lmmixup.neighbors import build_graph
    from hf_lmmixup.vectors import NEIGHBORS

    told("building the neighbor graph", 0, 0)
    graph = build_graph(vectors, NEIGHBORS)
    if graph.recall < 1:
        told(graph.trueness, 0, 0)
    return graph


def write(rows: Any, output: Path, *dropped: Mapping[str, str]) -> None:
    """Write the rows, and beside them why the others are not among them; a key with two reasons has both."""
    from hf_lmmixup.ledger import general
    from hf_lmmixup.run_directory import write_json
    from hf_lmmixup.stage_files import write_rows

    write_rows(rows, output)
    reasons: dict[str, str] = {}
    for key, reason in (pair for some in dropped for pair in some.items()):
        reasons[key] = f"{reasons[key]}; {reason}" if key in reasons else reason
    write_json(_reasons_of(output), reasons)
    table = Table(title="What became of the rows", show_header=False)
    table.add_row(f"in {escape(str(output))}", f"{len(rows):,}", style="bold")
    for reason, count in sorted(Counter(general(reason) for some in dropped for reason in some.values()).items()):
        table.add_row(f"dropped: {escape(reason)}", f"{count:,}")
    console.print(table)


def _reasons_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.dropped.json")


def _check_left(rows: Any, output: Path, count: int) -> None:
    """End with an exit code where rows went in and none is left."""
    if count and not len(rows):
        say(f"[red]Nothing came out:[/] all {count:,} rows were dropped; see {escape(str(_reasons_of(output)))}.")
        raise typer.Exit(TOO_MANY_REJECTS)
