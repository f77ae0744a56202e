"""Arguments and options that several commands have: one name, one help text, one reading."""

from pathlib import Path
from typing import Annotated

import typer


Input = Annotated[
    str, typer.Argument(metavar="INPUT", help="Rows: Parquet, JSON Lines, JSON, a dataset folder or a Hub id.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The .parquet or .jsonl file to write.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read at most this many rows.")]
TaskTypeName = Annotated[str, typer.Option(help="What the texts are: qa, mcq, tfq, cs or para.")]
EncoderName = Annotated[
    str | None, typer.Option("--encoder", help="Folder or Hub id of a sentence encoder; by default the MiniLM.")
]

Endpoint = Annotated[str | None, typer.Option(metavar="URL", help="An OpenAI-compatible server, up to and with /v1.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests in flight.")]
KeyVariable = Annotated[str, typer.Option(help="Environment variable that holds the server's key.")]
AllowHttp = Annotated[bool, typer.Option("--allow-http", help="Let rows go unencrypted to another machine.")]


def listed(text: str) -> list[str]:
    """What stands between the commas of an option, each once."""
    return [*dict.fromkeys(part.strip() for part in text.split(",") if part.strip())]
