"""`lmmixup evaluate`: distillers side by side on the MIXTURE test split. `lmmixup benchmark`: public benchmarks."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from hf_lmmixup.commands.options import AllowHttp, listed
from hf_lmmixup.console import console, errors, progress_bar, say


def evaluate(
    systems: Annotated[
        list[str],
        typer.Argument(
            metavar="SYSTEM...",
            help="A run directory (all of its models, extractive mode, references), a model or adapter (folder, Hub "
            "id, or MODEL@URL behind an endpoint), NAME=MODEL, `extractive` or `reference`.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the results; by default in the run directory.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="MIXTURE: `bundled`, `hub`, or a folder with a copy of it or your own.")
    ] = "bundled",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many prompts, spread over the types.")] = None,
    datastore: Annotated[
        str | None, typer.Option(help="Judge of the quality: folder, Hub id or `bundled`; by default the run's.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest completion; by default the run's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Completions written at the same time.")] = 32,
    rater: Annotated[
        str | None, typer.Option(metavar="MODEL@URL", help="A chat model behind an endpoint that rates the answers.")
    ] = None,
    rater_max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest reply of the rater. One that thinks first needs thousands.")
    ] = 256,
    allow_http: AllowHttp = False,
) -> None:
    """Let distillers answer the test split and compare format, rewards, coverage, overlap, length and ratings.

    For example:

        lmmixup evaluate runs/quickstart

        lmmixup evaluate runs/pile free=Qwen/Qwen2.5-7B-Instruct --rater gpt-4o-mini@https://api.openai.com/v1
    """
    from hf_lmmixup.evaluation import markdown
    from hf_lmmixup.run_facts import add_facts, read_facts
    from hf_lmmixup.systems import MAX_NEW_TOKENS, evaluate_systems, find_systems, is_run, mixture_test, split_name

    with errors():
        run = next((Path(target) for target in systems if is_run(Path(target))), None)
        folder = output or (run / "evaluation" if run else Path("evaluation"))
        judge = datastore or (str((run / "datastore").resolve()) if run else "bundled")
        recipe = read_facts(run)["recipe"] if run else {}
        writing = recipe.get("distiller") or {}
        tokens = max_new_tokens or writing.get("max_new_tokens") or MAX_NEW_TOKENS
        environment = {"HF_LMMIXUP_DATASTORE": judge, "HF_LMMIXUP_ENCODER": recipe.get("encoder") or ""}
        named = find_systems(systems)
        with progress_bar() as update:
            results = evaluate_systems(
                named,
                mixture_test(data, limit),
                data=split_name(data),
                folder=folder,
                environment=environment,
                max_new_tokens=tokens,
                no_repeat_ngram_size=writing.get("no_repeat_ngram_size") or 0,
                batch_size=batch_size,
                chat_model=_rater(rater, rater_max_new_tokens, allow_http),
                allow_http=allow_http,
                progress=update,
            )
        (folder / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (folder / "evaluation.md").write_text(markdown(results), encoding="utf-8")
        report = add_facts(run, mixture_test=results) if run and output is None else None
    console.print(_table(results))
    say(f"Wrote {escape(str(folder / 'evaluation.md'))}, evaluation.json and completions.jsonl.")
    if report:
        say(f"They are in [bold]{escape(str(report))}[/] too, and in the distiller's card when it is pushed.")


def benchmark(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run directory (its distiller), a model or adapter, or a Hub id.")
    ],
    tasks: Annotated[
        str, typer.Option(help="Some of mmlu, truthfulqa, gsm8k, bbh, tydiqa and questions, with commas between them.")
    ] = "mmlu,truthfulqa,gsm8k,bbh,tydiqa",
    data: Annotated[Path | None, typer.Option(help="Your questions and answers (.jsonl or .parquet).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each task; for trying it out.")] = None,
    batch_size: Annotated[str, typer.Option(help="Rows at a time, or `auto`.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Torch device, such as cpu or cuda:0.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A JSON file for the results, too.")] = None,
) -> None:
    """Run the benchmarks of the paper through lm-eval and keep the results for the model's card.

    For example:

        lmmixup benchmark runs/pile

        lmmixup benchmark runs/quickstart --tasks questions --data questions.jsonl
    """
    from hf_lmmixup.public_benchmarks import QUESTIONS, merge_evaluations, run_benchmarks, store_beside
    from hf_lmmixup.run_facts import add_facts, read_facts
    from hf_lmmixup.systems import is_run

    with errors():
        names = listed(tasks)
        if data is not None and QUESTIONS not in names:
            names.append(QUESTIONS)
        run = Path(model) if is_run(Path(model)) else None
        place = run / "distiller" if run else model
        size: int | str = int(batch_size) if batch_size.isdigit() else batch_size
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
        entries = run_benchmarks(
            place, names, data=str(data) if data else None, limit=limit, batch_size=size, device=device
        )
        console.print(_benchmarks(model, entries))  # before anything can keep them from being written
        if output is not None:
            output.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        if run:
            add_facts(run, evaluations=merge_evaluations(read_facts(run).get("evaluations") or [], entries))
        elif Path(model).is_dir():
            store_beside(model, entries)


def benchmark_tasks() -> None:
    """Print the folder of our lm-eval tasks.

    For example:

        lm_eval run --include_path "$(lmmixup benchmark-tasks)" --tasks lmmixup_questions --model_args pretrained=MODEL
    """
    from hf_lmmixup.public_benchmarks import tasks_path

    typer.echo(str(tasks_path()))


def _rater(given: str | None, max_new_tokens: int, allow_http: bool) -> Any:
    if given is None:
        return None
    model, _, url = given.rpartition("@")
    if not model or not url.startswith("http"):
        raise ValueError(f"--rater {given!r} must be MODEL@URL, such as rater-8b@http://127.0.0.1:8000/v1.")
    from hf_lmmixup.endpoint import EndpointModel

    return EndpointModel(model, url, max_tokens=max_new_tokens, allow_http=allow_http)


def _benchmarks(model: str, entries: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{escape(model)}: benchmarks")
    for title in ("benchmark", "metric", "percent", "how"):
        table.add_column(title, justify="right" if title == "percent" else "left")
    for entry in entries:
        table.add_row(entry["name"], entry["metric"], f"{entry['value']:.2f}", entry["notes"])
    return table


def _table(results: dict[str, Any]) -> Table:
    """Scores down, systems across, so that it fits a narrow terminal."""
    from hf_lmmixup.figures import given_scores, score_text, score_title

    systems = results["systems"]
    table = Table(title=f"{escape(results['data'])}: {results['rows']} prompts")
    table.add_column("score")
    for system in systems:
        table.add_column(escape(system["system"]), justify="right")
    table.add_row("prompts", *(str(system["rows"]) for system in systems))
    for name in given_scores(systems):
        table.add_row(score_title(name), *(score_text(name, system["means"].get(name)) for system in systems))
    return table
