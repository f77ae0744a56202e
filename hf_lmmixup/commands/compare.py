"""`lmmixup compare`: the same model fine-tuned on raw, selected and distilled data, at equal cost."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from hf_lmmixup.commands.options import listed
from hf_lmmixup.console import errors, progress_bar, say


def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run directory.")],
    model: Annotated[str, typer.Option(help="Model that every arm starts from: folder or Hub id.")],
    recipe: Annotated[
        str, typer.Option(help="TRL recipe of the fine-tuning: a file, or the name of one of ours.")
    ] = "downstream/tiny.yaml",
    arms: Annotated[
        str | None, typer.Option(help='Some of the arms, with commas between them, such as "full raw,distilled".')
    ] = None,
    budget: Annotated[
        str, typer.Option(help="`tokens`, `steps`, or both with a comma between them.")
    ] = "tokens,steps",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each arm.")] = 3,
    epochs: Annotated[float, typer.Option(help="Budget, in epochs over the raw rows.")] = 1.0,
    metric: Annotated[
        str, typer.Option(help="`likelihood`, `exact_match`, `rouge`, or package.module.function.")
    ] = "likelihood",
    test: Annotated[
        Path | None, typer.Option(help="Rows to test on; by default a fifth of the raw rows that scored high.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of trainings and results; by default in the run.")
    ] = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep the models after they were scored.")
    ] = False,
) -> None:
    """Fine-tune one model on each kind of data, and say with intervals what helped.

    A comparison that was stopped goes on behind its last scored model when the same command is given again.

    For example:

        lmmixup compare runs/quickstart --model models/tiny-distiller --arms "full raw,distilled"

        lmmixup compare runs/pile --model Qwen/Qwen2.5-1.5B --recipe downstream/qwen2.5-1.5b_qlora.yaml --metric rouge
    """
    from hf_lmmixup.comparison import Comparison, markdown
    from hf_lmmixup.comparison import compare as compare_arms
    from hf_lmmixup.data_arms import ARMS, rows_of_run
    from hf_lmmixup.recipe import TRAININGS, find_recipe
    from hf_lmmixup.run_facts import add_facts

    folder = output or run / "comparison"
    with errors(resumes=True):
        plan = Comparison(
            model=model,
            recipe=find_recipe(recipe, TRAININGS),
            folder=folder,
            arms=ARMS if arms is None else listed(arms),
            budgets=listed(budget),
            seeds=seeds,
            epochs=epochs,
            metric=metric,
            keep_models=keep_models,
        )
        rows = rows_of_run(run, test)
        folder.mkdir(parents=True, exist_ok=True)
        with progress_bar() as update:
            entries = compare_arms(plan, rows, progress=update)
        (folder / "comparison.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        text = markdown(entries)
        (folder / "comparison.md").write_text(text, encoding="utf-8")
        report = add_facts(run, arms=entries)
    say(escape(text))
    wrote = f"Wrote {folder / 'comparison.md'}{f'; see {report}' if report else ''}."
    say(f"Tested on {len(rows.test)} rows that no arm saw. {escape(wrote)}")
