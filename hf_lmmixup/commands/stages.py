"""`lmmixup cluster`, `distill`, `select` and `merge`: one stage each, rows in, rows out."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from hf_lmmixup.console import TOO_MANY_REJECTS, console, errors, progress_bar, say


Input = Annotated[
    str, typer.Argument(metavar="INPUT", help="Rows: Parquet, JSON Lines, JSON, a dataset folder or a Hub id.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The .parquet or .jsonl file to write.")]
EncoderName = Annotated[
    str | None, typer.Option("--encoder", help="Folder or Hub id of a sentence encoder; by default the MiniLM.")
]

BLOCK = 1024
"""Rows embedded between two steps of the progress bar."""


def cluster(
    input: Input,  # noqa: A002 -- the argument's name
    output: Output,
    report: Annotated[
        Path | None, typer.Option(help="The inspection page to write; by default beside the output.")
    ] = None,
    min_size: Annotated[int, typer.Option(min=1, help="Fewest rows of a cluster.")] = 2,
    max_size: Annotated[int, typer.Option(min=1, help="Most rows of a cluster.")] = 5,
    mean_size: Annotated[float, typer.Option(help="Mean of the wanted sizes.")] = 3.0,
    std_size: Annotated[float, typer.Option(min=0, help="Standard deviation of the wanted sizes.")] = 1.0,
    min_similarity: Annotated[float, typer.Option(help="Smallest cosine between rows of a cluster.")] = 0.5,
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

    For example:

        lmmixup cluster pile.jsonl --output clusters.parquet --duplicates 0.99
    """
    from hf_lmmixup.bounds import DEDUPLICATE, check
    from hf_lmmixup.cluster_page import render_inspection
    from hf_lmmixup.clustering import cluster as group
    from hf_lmmixup.deduplication import deduplicate
    from hf_lmmixup.inspection import inspect
    from hf_lmmixup.recipe import ClusterRecipe
    from hf_lmmixup.stage_files import check_output, read_rows
    from hf_lmmixup.tables import places_of, table_of

    with errors(), progress_bar() as told:
        check_output(output, input)
        wanted = ClusterRecipe(min_size, max_size, mean_size, std_size, min_similarity, singletons)
        check(DEDUPLICATE, {"max_similarity": duplicates}, "--duplicates: ")
        page = report or output.with_suffix(".html")
        page.parent.mkdir(parents=True, exist_ok=True)
        loaded = read_rows(input)
        rows = loaded.dataset
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
        page.write_text(render_inspection(inspection, output.stem), encoding="utf-8")
        _write(outcome.dataset, loaded.dropped | dropped | outcome.dropped, output)
    cohesion = "–" if inspection["cohesion"]["mean"] is None else f"{inspection['cohesion']['mean']:.3f}"
    told_of = f"{inspection['clusters']:,} clusters of {inspection['clustered']:,} rows, mean cosine {cohesion}, "
    say(f"{told_of}{inspection['singletons']:,} rows alone; see {escape(str(page))}.")


def distill(
    input: Input,  # noqa: A002 -- the argument's name
    output: Output,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of a model; behind an endpoint the name it has there."),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="An OpenAI-compatible server, up to and with /v1.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What runs the model here: transformers, paged or vllm.")
    ] = "transformers",
    extractive: Annotated[bool, typer.Option("--extractive", help="Write with no model at all.")] = False,
    task_type: Annotated[str, typer.Option(help="What the texts are: qa, mcq, tfq, cs or para.")] = "qa",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 1024,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Longest prompt; others are split.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that a local model writes together.")] = 32,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 16,
    attempts: Annotated[int, typer.Option(min=1, help="How often malformed text is asked for, in all.")] = 2,
    temperature: Annotated[float, typer.Option(help="Of the tries after the first one; above 0.")] = 0.7,
    key_variable: Annotated[
        str, typer.Option(help="Environment variable that holds the server's key.")
    ] = "OPENAI_API_KEY",
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Let rows go unencrypted to another machine.")
    ] = False,
    max_novelty: Annotated[
        float | None, typer.Option(help="Drop rows with a larger share of facts that no source has.")
    ] = None,
    min_coverage: Annotated[
        float | None, typer.Option(help="Drop rows that keep a smaller share of their sources' facts.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the later attempts.")] = 0,
    encoder: EncoderName = None,
) -> None:
    """Write one excellent row for each cluster, with `novelty` and `coverage`.

    Completions stay in OUTPUT.journal: the same command asks for nothing twice. Exit code 3 means that the server
    stopped answering, 4 that no cluster became a row; the reasons are in OUTPUT.dropped.json.

    For example:

        lmmixup distill clusters.parquet --output distilled.parquet --extractive

        lmmixup distill clusters.parquet --output distilled.parquet --endpoint http://127.0.0.1:8000/v1 --model qwen-7b
    """
    from hf_lmmixup.faithfulness import check_faithfulness
    from hf_lmmixup.journal import Journal
    from hf_lmmixup.recipe import EXTRACTIVE, TRAINED, DistillerRecipe, FaithfulnessRecipe
    from hf_lmmixup.stage_files import check_output, read_rows
    from hf_lmmixup.writers import writing_settings

    with errors(resumes=True), progress_bar() as told:
        check_output(output, input)
        if (model is None) != extractive:
            raise ValueError("Give --model, or --extractive, which needs none; one of the two.")
        if extractive and endpoint is not None:
            raise ValueError("--extractive asks no server, so it does not go with --endpoint.")
        if not temperature > 0:
            raise ValueError(f"--temperature {temperature} must be above 0; the first try is greedy in any case.")
        faithful = FaithfulnessRecipe(max_novelty=max_novelty, min_coverage=min_coverage)
        loaded = read_rows(input)
        clustered = loaded.dataset
        if "cluster_id" not in clustered.column_names:
            raise ValueError(f"{input} has no column cluster_id. Make it with lmmixup cluster.")
        served = {"endpoint": endpoint, "concurrency": concurrency, "key_variable": key_variable}
        lengths = {"max_new_tokens": max_new_tokens, "max_prompt_tokens": max_prompt_tokens}
        tries = {"attempts": attempts, "temperature": temperature, "batch_size": batch_size}
        known: dict[str, Any] = {"engine": engine, "allow_http": allow_http, **served, **lengths, **tries}
        options = DistillerRecipe(mode=EXTRACTIVE if extractive else TRAINED, model=model or "", **known)
        settings = {"distiller": model or "extractive", "seed": seed, "task_type": task_type}
        settings |= {"encoder": encoder} if extractive else writing_settings(options)
        with Journal(output.with_name(f"{output.name}.journal"), settings) as journal:
            told("distilling", 0, 0)
            if extractive:
                outcome = _extract(clustered, encoder, task_type, journal)
            else:
                outcome = _ask(clustered, options, task_type, seed, journal)
        checked = check_faithfulness(outcome.dataset, clustered, task_type=task_type, **vars(faithful))
        _write(checked.dataset, loaded.dropped | outcome.dropped | checked.dropped, output)
    clusters = len(set(clustered["cluster_id"]) - {None})
    if clusters and not len(checked.dataset):
        say(f"[red]Nothing came out:[/] none of {clusters} clusters became a row.")
        raise typer.Exit(TOO_MANY_REJECTS)


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

    For example:

        lmmixup select rated.parquet --output best.parquet --token-budget 1000000 --max-similarity 0.9
    """
    from hf_lmmixup.bounds import SELECT, check
    from hf_lmmixup.selection import select as take
    from hf_lmmixup.stage_files import check_output, read_rows

    limits: dict[str, Any] = {"size": size, "token_budget": token_budget, "max_similarity": max_similarity}
    limits["min_score"] = None if min_score < 0 else min_score
    with errors(), progress_bar() as told:
        check_output(output, input)
        check(SELECT, limits)
        loaded = read_rows(input)
        rows = loaded.dataset
        if "score" not in rows.column_names:
            raise ValueError(f"{input} has no column score. Make it with lmmixup rate.")
        vectors = _embed(rows, encoder, told)
        outcome = take(rows, embeddings=vectors, graph=_graph(vectors, told), **limits)
        _write(outcome.dataset, loaded.dropped | outcome.dropped, output)


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

    For example:

        lmmixup merge best.parquet distilled.parquet --output dataset.parquet --size 10000 --share 0.5
    """
    from hf_lmmixup.selection import merge as unite
    from hf_lmmixup.stage_files import check_output, read_rows

    with errors():
        check_output(output, originals, distilled)
        sides = read_rows(originals), read_rows(distilled)
        outcome = unite(sides[0].dataset, sides[1].dataset, size=size, distilled_share=distilled_share)
        _write(outcome.dataset, sides[0].dropped | sides[1].dropped | outcome.dropped, output)


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


def _extract(rows: Any, encoder: str | None, task_type: str, journal: Any) -> Any:
    from hf_lmmixup.encoder import load_encoder
    from hf_lmmixup.extractive import distill_extractively

    return distill_extractively(rows, load_encoder(encoder), task_type=task_type, journal=journal)


def _ask(rows: Any, options: Any, task_type: str, seed: int, journal: Any) -> Any:
    from hf_lmmixup.distillation import distill as write
    from hf_lmmixup.writers import open_writer

    writer = open_writer(options, options.model)
    return write(
        rows,
        writer.generate,
        distiller_name=writer.name,
        task_type=task_type,
        max_prompt_tokens=writer.max_prompt_tokens,
        count_tokens=writer.count_tokens,
        attempts=options.attempts,
        seed=seed,
        journal=journal,
    )


def _write(rows: Any, dropped: dict[str, str], output: Path) -> None:
    """Write the rows, and beside them why the others are not among them."""
    from hf_lmmixup.ledger import general
    from hf_lmmixup.run_directory import write_json
    from hf_lmmixup.stage_files import write_rows

    write_rows(rows, output)
    write_json(output.with_name(f"{output.name}.dropped.json"), dropped)
    table = Table(title="What became of the rows", show_header=False)
    table.add_row(f"in {escape(str(output))}", f"{len(rows):,}", style="bold")
    for reason, count in sorted(Counter(map(general, dropped.values())).items()):
        table.add_row(f"dropped: {escape(reason)}", f"{count:,}")
    console.print(table)
