"""`lmmixup distill`: clusters in, one row for each out."""

from typing import Annotated, Any

import typer

from hf_lmmixup.commands.options import (
    AllowHttp,
    Concurrency,
    Endpoint,
    Input,
    KeyVariable,
    Output,
    TaskTypeName,
)
from hf_lmmixup.commands.stages import write
from hf_lmmixup.console import TOO_MANY_REJECTS, errors, progress_bar, say


def distill(
    input: Input,  # noqa: A002 -- the argument's name
    output: Output,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of a model; behind an endpoint the name it has there."),
    ] = None,
    endpoint: Endpoint = None,
    engine: Annotated[
        str, typer.Option(help="What runs the model here: transformers, paged or vllm.")
    ] = "transformers",
    extractive: Annotated[bool, typer.Option("--extractive", help="Write with no model at all.")] = False,
    task_type: TaskTypeName = "qa",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 1024,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Longest prompt; others are split.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that a local model writes together.")] = 32,
    concurrency: Concurrency = 16,
    attempts: Annotated[int, typer.Option(min=1, help="How often malformed text is asked for, in all.")] = 2,
    temperature: Annotated[float, typer.Option(help="Of the tries after the first one; above 0.")] = 0.7,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    allow_http: AllowHttp = False,
    max_novelty: Annotated[
        float | None, typer.Option(help="Drop rows with a larger share of facts that no source has.")
    ] = None,
    min_coverage: Annotated[
        float | None, typer.Option(help="Drop rows that keep a smaller share of their sources' facts.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the later attempts.")] = 0,
    encoder: Annotated[
        str | None, typer.Option(help="Sentence encoder for --extractive; by default the offline MiniLM.")
    ] = None,
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
    from hf_lmmixup.stage_files import check_output, read_rows, with_clusters
    from hf_lmmixup.writers import writing_settings

    with errors(resumes=True), progress_bar() as told:
        check_output(output, input)
        if (model is None) != extractive:
            raise ValueError("Give --model, or --extractive, which needs none; one of the two.")
        if extractive and endpoint is not None:
            raise ValueError("--extractive asks no server, so it does not go with --endpoint.")
        if encoder is not None and not extractive:
            raise ValueError("--encoder is for --extractive, which is not given; a model needs none.")
        if not temperature > 0:
            raise ValueError(f"--temperature {temperature} must be above 0; the first try is greedy in any case.")
        faithful = FaithfulnessRecipe(max_novelty=max_novelty, min_coverage=min_coverage)
        loaded = read_rows(input)
        clustered = with_clusters(loaded.dataset, input)
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
        write(checked.dataset, output, loaded.dropped, outcome.dropped, checked.dropped)
    clusters = len(set(clustered["cluster_id"]) - {None})
    if clusters and not len(checked.dataset):
        say(f"[red]Nothing came out:[/] none of {clusters} clusters became a row.")
        raise typer.Exit(TOO_MANY_REJECTS)


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
