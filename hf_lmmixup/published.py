r"""MIXTURE as it was published: finding its files, reading their rows, and turning a row into a cluster.

The repository `dokiik/MIXTURE` and the loaders around it (arXiv 2510.20449) use two layouts of JSON arrays::

    data_sft/{cs,mcq,qa,para,tfq}/merged_{train,test}_{cs,mcq,qa,para,tfq}_noisy.json
    data_sft/merged_all_30.json         both: id, instruction, input, output, cot, source
    data_grpo/.../{train,test}.json     input (with the instruction in front), output, task_type: qa_mixup, ...

`merged_all_30.json` is the cold-start part, the first 30 % of the train files; where it is present it stands for them,
since the other 70 % are the GRPO rows. One row, and the cluster that `read_clusters` makes of it::

    {"input": "Merge ...\nQ: tides?\nA: Moon\n\nQ: why tides\nA: gravity", "output": "Q: ...", "task_type": "qa_mixup"}
    {"id": "51b0...", "task_type": "qa", "sources": ["Q: tides?\nA: Moon", "Q: why tides\nA: gravity"],
     "target": "Q: ...", "reasoning": "", "topic": None, "source": None, "published": {...}}

Files are streamed (`row_stream`), so that memory does not grow with them.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import fsspec

from hf_lmmixup.prompts import ANSWER_LABELS
from hf_lmmixup.records import TaskType, row_id
from hf_lmmixup.row_stream import RowError, read_flat_rows


REPOSITORY = "hf://datasets/dokiik/MIXTURE"

PEEKED_ROWS = 200
"""Rows of each file that are looked at to learn its instructions."""

FIELDS = {"sft": ("instruction", "input", "output", "cot"), "grpo": ("input", "output", "task_type")}
"""What a row of each kind of file must have, as text."""

SPELLINGS = {f"{kind.value}{ending}": kind for kind in TaskType for ending in ("", "_mixup")} | {
    "paragraph": TaskType.PARA,
    "paragraph_mixup": TaskType.PARA,
}
"""The published spellings: `qa` in file names, `qa_mixup` in GRPO rows, `paragraph` in the kNN library."""

_SFT_FILE = re.compile(r"merged_(train|test)_([a-z]+)_noisy\.json")
_COLD_START_FILE = re.compile(r"merged_all_\d+\.json")
_GRPO_FILE = re.compile(r"(train|test)\.json")


@dataclass(frozen=True)
class MixtureFile:
    """One published file.

    Attributes:
        path: Where it is: a local path or an `hf://` address.
        name: Its path inside the folder, for messages and for the cache.
        form: `sft` or `grpo`.
        split: `train` or `test`.
        task_type: What its name says about its rows; `None` if it holds all kinds.
        cold_start: Whether it is the part of the train files that stands for all of them.
    """

    path: str
    name: str
    form: str
    split: str
    task_type: TaskType | None = None
    cold_start: bool = False


def task_type_of(spelling: str) -> TaskType:
    """One task type from a published spelling.

    Raises:
        ValueError: If it is none of `SPELLINGS`.
    """
    plain = spelling.strip().lower()
    return SPELLINGS.get(plain) or TaskType(plain.removesuffix("_mixup"))


def describe(path: str, *, name: str | None = None, split: str | None = None) -> MixtureFile | None:
    """What a path says about a file; `None` if it is no name of a published file.

    Args:
        path: Its address.
        name: Its path inside the folder; the address by default.
        split: The split it was asked for; by default the one its name says.
    """
    name = name or path
    folder, _, base = path.rpartition("/")
    if match := _SFT_FILE.fullmatch(base):
        return MixtureFile(path, name, "sft", split or match[1], task_type_of(match[2]))
    if _COLD_START_FILE.fullmatch(base):
        return MixtureFile(path, name, "sft", split or "train", cold_start=True)
    if match := _GRPO_FILE.fullmatch(base):
        return MixtureFile(path, name, "grpo", split or match[1])
    return MixtureFile(path, name, "", split) if split else None


def find_files(folder: str) -> list[MixtureFile]:
    """All published files below a folder.

    Args:
        folder: A local folder or an address such as `hf://datasets/dokiik/MIXTURE`.

    Returns:
        The files, sorted by name.

    Raises:
        FileNotFoundError: If the folder cannot be read or holds none.
    """
    filesystem, root = fsspec.core.url_to_fs(folder)
    root = root.rstrip("/")
    try:
        paths = sorted(filesystem.find(root))
    except Exception as error:  # each filesystem has its own errors; all mean that nothing can be listed
        raise FileNotFoundError(f"Cannot list {folder}: {error}. Pass data_dir=FOLDER with a copy of it.") from error
    found = [
        describe(filesystem.unstrip_protocol(path) if "://" in folder else path, name=path[len(root) + 1 :])
        for path in paths
    ]
    files = [file for file in found if file is not None]
    if not files:
        raise FileNotFoundError(
            f"No file of MIXTURE in {folder}: expected names like data_sft/qa/merged_train_qa_noisy.json, "
            f"data_sft/merged_all_30.json or data_grpo/train.json, found {[p[len(root) + 1 :] for p in paths[:5]]}. "
            f"A folder with a README and Parquet files is loaded by load_dataset({folder!r})."
        )
    return files


def choose_files(files: Iterable[MixtureFile], form: str, split: str, task_type: str | None) -> list[MixtureFile]:
    """The files that one split of a configuration reads.

    Args:
        files: What `find_files` returned.
        form: `sft`, `grpo`, or `raw` for both.
        split: `train` or `test`.
        task_type: Leaves out files that hold only other types; `None` leaves out none.

    Returns:
        The files in order; with a cold-start file present, the train files that contain it are left out.
    """
    chosen = [file for file in files if file.split == split and form in ("raw", file.form)]
    cold_start = any(file.cold_start for file in chosen)
    return [
        file
        for file in chosen
        if (not cold_start or file.cold_start or file.form != "sft")
        and task_type in (None, file.task_type or task_type)
    ]


def content_key(file: MixtureFile) -> str:
    """What identifies the content of a file: SHA-256 of its bytes, or what a remote filesystem says about them."""
    filesystem, path = fsspec.core.url_to_fs(file.path)
    if "file" in filesystem.protocol:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    known = filesystem.info(path)
    return repr([known.get(key) for key in ("size", "ETag", "blob_id", "xet_hash")])


def read_clusters(file: MixtureFile, instructions: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file as clusters.

    Args:
        file: The file.
        instructions: Texts that may stand in front of an input; see `known_instructions`.

    Yields:
        `id`, `task_type`, `sources`, `target`, `reasoning`, `topic`, `source`, and the row itself as `published`.

    Raises:
        RowError: If a field is missing, is no text, or names no task type.
    """
    ordered = sorted(instructions, key=len, reverse=True)
    for number, row in read_flat_rows(file.path, file.name):
        if not file.form:
            file = replace(file, form="sft" if "cot" in row else "grpo")
        _check(row, file, number)
        task_type = _task_type(row, file, number)
        texts = str(row["input"])
        if file.form == "grpo":
            texts = strip_instruction(texts, task_type, ordered)
        yield {
            "id": row_id(texts, str(row["output"])),
            "task_type": task_type.value,
            "sources": split_sources(texts, task_type),
            "target": str(row["output"]).strip(),
            "reasoning": (row.get("cot") or "").strip(),
            "topic": None,
            "source": row.get("source"),
            "published": row,
        }


def known_instructions(files: Iterable[MixtureFile]) -> tuple[str, ...]:
    """The instructions of some files, learned from their first rows.

    Rows for SFT name theirs. Rows for GRPO carry it in front of the input, the same one for all rows of a task type:
    it is what their inputs begin with in common, up to the end of a line.

    Args:
        files: All files of the folder; more files, more instructions known.

    Returns:
        The distinct instructions.
    """
    known: dict[str, None] = {}
    for file in files:
        inputs: dict[str, list[str]] = {}
        for _, row in islice(read_flat_rows(file.path, file.name), PEEKED_ROWS):
            if instruction := (row.get("instruction") or "").strip():
                known[instruction] = None
            elif "cot" not in row:
                inputs.setdefault(row.get("task_type") or "", []).append(row.get("input") or "")
        for texts in inputs.values():
            if prefix := _common_lines(texts):
                known[prefix] = None
    return tuple(known)


def strip_instruction(text: str, task_type: TaskType, instructions: Iterable[str]) -> str:
    """Take the instruction off an input; what no known instruction opens is cut before the first label of its type."""
    for instruction in instructions:
        if text.lstrip().startswith(instruction):
            return text.lstrip()[len(instruction) :].strip()
    labels = ANSWER_LABELS[task_type]
    if labels and not text.startswith(labels[0]) and (start := text.find("\n" + labels[0])) >= 0:
        return text[start:].strip()
    return text.strip()


def split_sources(text: str, task_type: TaskType) -> list[str]:
    """The members of a linearized cluster: a new one starts at each first label, or after a blank line in prose."""
    labels = ANSWER_LABELS[task_type]
    if labels and text.lstrip().startswith(labels[0]):
        parts = re.split(rf"\n(?={re.escape(labels[0])})", text)
    else:
        parts = re.split(r"\n\s*\n", text)
    return [part.strip() for part in parts if part.strip()]


def _check(row: dict[str, str | None], file: MixtureFile, number: int) -> None:
    for field in FIELDS[file.form]:
        if field not in row:
            raise RowError(
                f"{file.name}: row {number}: field {field!r} is missing or no text. "
                f"A row for {file.form} has {list(FIELDS[file.form])}; this one has {sorted(row)}."
            )
        if field in ("input", "output") and not (row[field] or "").strip():
            raise RowError(f"{file.name}: row {number}: field {field!r} is empty.")


def _task_type(row: dict[str, str | None], file: MixtureFile, number: int) -> TaskType:
    """From the row, the file's name, the row's source, or the labels of its output, in this order."""
    if row.get("task_type"):
        try:
            return task_type_of(str(row["task_type"]))
        except ValueError as error:
            raise RowError(f"{file.name}: row {number}: field 'task_type': {error}") from error
    if file.task_type is not None:
        return file.task_type
    if (named := (row.get("source") or "").strip().lower()) in SPELLINGS:
        return SPELLINGS[named]
    output = str(row["output"]).strip()
    for task_type in (TaskType.MCQ, TaskType.QA, TaskType.TFQ, TaskType.CS):
        labels = ANSWER_LABELS[task_type]
        if output.startswith(labels[0]) and all(label in output for label in labels[1:]):
            return task_type
    return TaskType.PARA


def _common_lines(texts: list[str]) -> str:
    """What all texts begin with, up to the end of a line; empty for fewer than three texts."""
    if len(texts) < 3:
        return ""
    low, high = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[: low.rfind("\n", 0, length) + 1].strip()
