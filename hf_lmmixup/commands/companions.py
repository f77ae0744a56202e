"""`lmmixup mosaic` and `lmmixup confidence`: the two companions of distillation, each as one command."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from hf_lmmixup.commands.options import Input, Limit, Output
from hf_lmmixup.console import console, errors, progress_bar, say, tally


Split = Annotated[str, typer.Option(help="Which split of the input.")]

ALONE = {
    "single": "one row, as it is",
    "overlong": "one row beyond the token budget, unchanged",
    "unsupported": "one row of another shape, unchanged",
}
"""What the report calls examples of one row."""


def mosaic(
    input: Input,  # noqa: A002 -- the argument's name
    output: Output,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Folder or Hub id of the model to be trained; counts tokens.")
    ] = None,
    max_tokens: Annotated[
        str, typer.Option(metavar="NUMBER|none", help="Most tokens of a mosaic, chat template included.")
    ] = "2000",
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WEIGHT]",
            help="primary, format, permute or maskout, with its weight; repeat to mix. By default the last three.",
        ),
    ] = None,
    number: Annotated[
        str,
        typer.Option(help="Rows of a mosaic: uniform, fixed, max_length, exponential, pareto, lognormal, logistic."),
    ] = "uniform",
    max_items: Annotated[int, typer.Option(help="Most rows of a mosaic.")] = 10,
    templates: Annotated[
        str, typer.Option(metavar="LANGUAGE|PATH", help="Language of the sentences, or a JSON file with your own.")
    ] = "en",
    keep_apart: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Column whose values never meet in one mosaic, of Parquet or of a stage's output."
        ),
    ] = None,
    epoch: Annotated[int, typer.Option(min=0, help="Which pass: every epoch joins the rows anew.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    num_proc: Annotated[int | None, typer.Option(min=1, help="Processes; the result does not depend on them.")] = None,
    limit: Limit = None,
    split: Split = "train",
) -> None:
    """Join several instruction pairs into one example, without any model (Mosaic-IT), and write one pass.

    Every row is answered in exactly one mosaic; the report says what became of them. In training, no file is needed:
    `SFTTrainer(train_dataset=mosaic(rows, tokenizer))` makes another pass in every epoch.

    For example:

        lmmixup mosaic pile.jsonl -o mosaics.parquet --tokenizer Qwen/Qwen2.5-1.5B

        lmmixup mosaic pile.jsonl -o mosaics.jsonl --max-tokens none --strategy permute=2 --strategy maskout --epoch 1

        lmmixup mosaic runs/quickstart/dataset -o mosaics.parquet --tokenizer models/a --number max_length
    """
    from hf_lmmixup.mosaic import mosaic_file
    from hf_lmmixup.mosaic_config import MosaicConfig
    from hf_lmmixup.stage_files import check_output

    with errors():
        check_output(output)
        weights = {} if strategy is None else {"strategies": _weights(strategy)}
        config = MosaicConfig(
            **weights,
            number=number,
            max_items=max_items,
            max_tokens=_budget(max_tokens, tokenizer),
            templates=templates,
            seed=seed,
            keep_apart=keep_apart,
        )
        with progress_bar() as told:
            told("reading rows", 0, 0)
            report, rejected = mosaic_file(
                input,
                output,
                tokenizer,
                config,
                epoch=epoch,
                num_proc=num_proc,
                limit=limit,
                split=split,
                progress=told,
            )
    console.print(_mosaic_table(report, rejected))
    say(f"Wrote {report.examples:,} examples of {report.rows:,} rows to {escape(str(output))}.")


def confidence(
    input: Input,  # noqa: A002 -- the argument's name
    output: Annotated[Path, typer.Option("--output", "-o", help="The .parquet table to write, keyed by row id.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the reference model; may be weaker than yours.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="Train nothing: score a model that a run saved. Repeat in its order."),
    ] = None,
    checkpoints: Annotated[int, typer.Option(min=1, help="How often the model is asked, evenly spaced.")] = 3,
    online: Annotated[
        bool, typer.Option("--online", help="Use the training passes: no extra pass, one value for each epoch.")
    ] = False,
    epochs: Annotated[float, typer.Option(help="Epochs of the reference run.")] = 3.0,
    learning_rate: Annotated[float | None, typer.Option(help="By default 2e-5, or 2e-4 with --lora-rank.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step, for each process.")] = 8,
    max_length: Annotated[int, typer.Option(min=2, help="Longest row in tokens; longer ones are cut.")] = 1024,
    lora_rank: Annotated[int, typer.Option(min=0, help="Rank of a LoRA adapter; 0 trains all weights.")] = 0,
    rows: Annotated[
        Path | None, typer.Option(help="Also write the rows with their `confidence`: a .parquet or .jsonl file.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="The plot of the distribution (SVG); by default beside the output.")
    ] = None,
    run_directory: Annotated[
        Path | None, typer.Option(help="Keep the run's checkpoints here; a run that was stopped goes on from them.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the reference run.")] = 42,
    limit: Limit = None,
) -> None:
    """Train a reference model on the rows and write how sure it was of every response (SFTMix).

    Confidence is minus the mean perplexity of a response; its median splits the rows into the two halves that
    `SFTMixTrainer` mixes. The table is joined to rows by id, so rows and models may change in between.

    For example:

        lmmixup confidence pile.jsonl -o confidence.parquet --model Qwen/Qwen2.5-0.5B --online

        lmmixup confidence pile.jsonl -o c.parquet --checkpoint run/checkpoint-100 --checkpoint run/checkpoint-200

        lmmixup confidence pile.jsonl -o confidence.parquet --model models/tiny-distiller --rows rows.parquet
    """
    from hf_lmmixup.stage_files import check_output, read_rows, write_rows

    with errors(resumes=run_directory is not None):
        _check_confidence(output, model, checkpoint, online)
        check_output(output, input)
        if rows is not None:
            check_output(rows, input)
            if rows.resolve() == output.resolve():
                raise ValueError(f"--rows and --output both name {output}. The rows and the table are two files.")
        read = read_rows(input, limit=limit)
        from hf_lmmixup.sftmix import attach_confidence, record_confidence, save_confidence_plot, score_checkpoints

        quiet: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
        with progress_bar() as told:
            if checkpoint:
                table = score_checkpoints(read.dataset, checkpoint, output, progress=told, **quiet)
            else:
                run: dict[str, Any] = {"checkpoints": checkpoints, "online": online, "epochs": epochs, "seed": seed}
                run |= {"learning_rate": learning_rate, "lora_rank": lora_rank, "run_directory": run_directory}
                table = record_confidence(read.dataset, str(model), output, progress=told, **run, **quiet)
        drawn = save_confidence_plot(table["confidence"][:], plot or output.with_suffix(".svg"))
        if rows is not None:
            write_rows(attach_confidence(read.dataset, table), rows)
    console.print(_confidence_table(table, len(read.dataset), read.dropped))
    say(f"Wrote {len(table):,} confidences to {escape(str(output))}; see {escape(str(drawn))}.")


def _weights(strategies: list[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for text in strategies:
        name, given, weight = text.partition("=")
        try:
            weights[name] = float(weight) if given else 1.0
        except ValueError:
            raise ValueError(f"--strategy {text} needs a number as its weight, for example {name}=2.") from None
    return weights


def _budget(text: str, tokenizer: str | None) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal():
        raise ValueError(f"--max-tokens {text} is neither a whole number nor `none`.")
    if tokenizer is None:
        raise ValueError(
            f"--max-tokens {text} needs to know how long rows are. Name the model with --tokenizer MODEL, or take "
            "--max-tokens none."
        )
    return int(text)


def _check_confidence(output: Path, model: str | None, checkpoint: list[str] | None, online: bool) -> None:
    if output.suffix != ".parquet":
        raise ValueError(f"{output} ends in {output.suffix!r}. A confidence table is written as .parquet.")
    if (model is None) == (not checkpoint):
        raise ValueError("Name either --model, which is trained on the rows, or --checkpoint, which is only asked.")
    if checkpoint and online:
        raise ValueError("--online listens to a training run, and --checkpoint trains nothing. Take one of them.")


def _mosaic_table(report: Any, rejected: dict[str, str]) -> Table:
    table = tally("What became of the rows")
    table.add_row("rows read", f"{report.rows + len(rejected):,}", style="bold")
    for reason, count in Counter(rejected.values()).most_common():
        table.add_row(f"not used: {escape(reason)}", f"{count:,}")
    table.add_row("rows answered", f"{report.rows:,}")
    table.add_row("skipped and answered later", f"{report.masked:,}")
    table.add_row("examples", f"{report.examples:,}", style="bold")
    for kind, count in report.strategies.items():
        table.add_row(f"of which {ALONE.get(kind, kind)}", f"{count:,}")
    return table


def _confidence_table(table: Any, rows: int, dropped: dict[str, str]) -> Table:
    from hf_lmmixup.sftmix import split_by_confidence
    from hf_lmmixup.sftmix.confidence import CONFIDENT, UNCONFIDENT

    halves = split_by_confidence(table["confidence"][:], table["id"][:])
    shown = tally("Confidence")
    shown.add_row("read", f"{rows:,}", style="bold")
    shown.add_row("confident half", f"{int((halves == CONFIDENT).sum()):,}")
    shown.add_row("unconfident half", f"{int((halves == UNCONFIDENT).sum()):,}")
    shown.add_row("in neither half", f"{rows - int((halves != 0).sum()):,}")
    for reason, count in Counter(dropped.values()).most_common():
        shown.add_row(f"not read: {escape(reason)}", f"{count:,}")
    return shown
