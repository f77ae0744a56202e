"""A run directory: finished stages, one writer, and a fingerprint of what the run is made from.

Each stage writes into a hidden folder that is renamed when everything in it is on disk, so a stage either exists whole
or not at all. After a crash the same command goes on behind the last finished stage. A directory belongs to one input
and one set of settings; others are refused by name::

    runs/quickstart/
        manifest.json     what the run is made from
        stages/1_load     rows.arrow, dropped.json
        stages/3_rate     the same, without the texts of the rows: they stand in 1_load
        ...
        dataset/          the result

The rows of a stage are an Arrow stream that is mapped into memory, not read: a stage that looks at the texts shares
them with the system's page cache, and one that does not costs nothing. `Dataset.from_file("rows.arrow")` opens one.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features

from hf_lmmixup.fingerprint import changes_results, flatten
from hf_lmmixup.journal import sync
from hf_lmmixup.mapped_files import map_file
from hf_lmmixup.records import Outcome
from hf_lmmixup.tables import GATHERED, best_first, dataset_of, gathered, places_of, rows_at, table_of


MANIFEST, LOCK, STAGES = "manifest.json", ".lock", "stages"
ROWS, DROPPED, ATTEMPTS = "rows.arrow", "dropped.json", "attempts.arrow"

LEDGER, LEDGER_ROWS, FACTS, REPORT = "ledger.json", "rows.parquet", "facts.json", "report.html"
"""What a finished run leaves beside its dataset; the ledger is written last."""

LOAD, EMBED, CLEAN, RATE, UNIQUE = "1_load", "2_embed", "2_decontaminate", "3_rate", "3_deduplicate"
CLUSTER, TRAIN, DISTIL, CHECK, RERATE = "4_cluster", "6_train", "7_distil", "7_check", "8_rate_again"
ORDER = (LOAD, EMBED, CLEAN, RATE, UNIQUE, CLUSTER, TRAIN, DISTIL, CHECK, RERATE)
"""The stages in the order of the work; the first one brings the raw rows."""

MADE = (
    *("dataset", "datastore", "distiller", "training", "distil.journal", "costs.json", "recipe.yaml"),
    *(LEDGER, LEDGER_ROWS, FACTS, REPORT),
)
"""What a run writes beside its stages, each in the place of what had the name before."""

DAMAGED = "{} is damaged: {}. Restore it from a copy, or delete the folder of the run to start anew."

TEXTS = ("prompt", "completion", "source")
"""Columns of a raw row that no later stage changes, so the later stages leave them where they were loaded."""


class RunDirectory:
    """The folder of one run.

    Args:
        path: The folder; made if needed.

    Attributes:
        path: The folder.

    Raises:
        ValueError: If there is a file of this name.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_file():
            raise ValueError(f"{self.path} is a file. Name a folder for the run.")
        (self.path / STAGES).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process alone; a lock left by a crash does not hold.

        Raises:
            RuntimeError: If another process holds it.
        """
        with (self.path / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"Another run is writing to {self.path}. Wait for it, or choose another --output."
                ) from None
            yield

    def claim(self, fingerprint: dict[str, Any]) -> None:
        """Bind the directory to what the run is made from; as long as nothing in it is made, it is free.

        Args:
            fingerprint: Plain data; nested mappings are compared key by key.

        Raises:
            ValueError: If the directory belongs to a run with another fingerprint; names the first difference. Or if
                it holds files under the names of a run's, and no run says that they are its own.
        """
        path = self.path / MANIFEST
        wanted = flatten(fingerprint)
        made = [f"{STAGES}/{stage.name}" for stage in (self.path / STAGES).iterdir() if stage.name[0] != "."]
        made += [name for name in MADE if (self.path / name).exists()]
        if not made:
            write_json(path, fingerprint)
            return
        if not path.exists():
            told = f"holds {made[0]}, but no {MANIFEST} that says which run made it, and a run would write over it."
            raise ValueError(f"{self.path} {told} Choose another --output, or move it away.")
        found = flatten(read_json(path))
        for key in sorted(wanted | found):
            if not changes_results(key, found.get(key), wanted.get(key)):
                continue
            if key in found:
                other = repr(wanted[key]) if key in wanted else "none"
                told = f"holds a run with {key}={found[key]!r}, but this one has {other}."
            else:
                told = f"holds a run without {key}, but this one has {wanted[key]!r}; earlier versions note less."
            raise ValueError(f"{self.path} {told} Choose another --output, or delete the folder to start anew.")

    def stage(self, name: str) -> Path:
        """The folder of a finished stage, whether or not it exists."""
        return self.path / STAGES / name

    def has(self, name: str) -> bool:
        """Whether a stage is finished."""
        return self.stage(name).is_dir()

    @contextmanager
    def writing(self, target: str | Path) -> Iterator[Path]:
        """A fresh folder that becomes `target`, below the run directory, when the block ends without an error.

        Args:
            target: The folder's final place, relative to the run directory.
        """
        with whole_folder(self.path / target) as partial:
            yield partial

    def adopt(self, folder: Path, name: str) -> None:
        """Make a folder below the run directory, written bit by bit, the finished stage `name`."""
        _sync_tree(folder)
        os.rename(folder, self.stage(name))
        sync(self.path / STAGES)

    def save_outcome(
        self,
        name: str,
        outcome: Outcome,
        *,
        new_texts: bool = True,
        by_id: bool = False,
        attempts: Dataset | None = None,
    ) -> None:
        """Write a stage's rows and the reasons for those it dropped.

        Args:
            name: The stage.
            outcome: What it returned.
            new_texts: Whether the rows are others than those loaded; if not, `TEXTS` are not written again.
            by_id: Whether to put the rows in order of their id; the ordered ones are never in memory together.
            attempts: What it tried on the way, for `lmmixup explain`.
        """
        table = table_of(outcome.dataset)
        known = [] if new_texts else [column for column in TEXTS if column in table.column_names]
        table = table.drop_columns(known)
        parts = gathered(table, best_first(outcome.dataset), GATHERED) if by_id else [table]
        with self.writing(f"{STAGES}/{name}") as folder:
            write_arrow(folder / ROWS, table.schema, parts)
            write_json(folder / DROPPED, outcome.dropped)
            if attempts is not None and len(attempts):
                write_arrow(folder / ATTEMPTS, attempts.features.arrow_schema, [table_of(attempts)])

    def load_outcome(self, name: str, features: Features) -> Outcome:
        """What `save_outcome` wrote."""
        return StoredOutcome(self.stage(name), features)


class StoredOutcome(Outcome):
    """The outcome of a finished stage; what it holds is read when it is asked for and belongs to who asked.

    A run has many stages, and the texts and reasons of all of them at once would fill the memory.

    Args:
        folder: Where the stage is.
        features: Its columns.
    """

    def __init__(self, folder: Path, features: Features) -> None:
        self._folder, self._features = folder, features

    @property
    def dropped(self) -> dict[str, str]:  # type: ignore[override]
        """Why rows did not go on, read anew each time."""
        reasons: dict[str, str] = read_json(self._folder / DROPPED)
        return reasons

    @property
    def dataset(self) -> Dataset:  # type: ignore[override]
        """The rows that went on, read anew each time."""
        return read_stage(self._folder, self._features)

    def columns(self, *names: str) -> Dataset:
        """The same without the columns that nobody asked for; texts are most of a row."""
        return read_stage(self._folder, Features({name: self._features[name] for name in names}))


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of `final` when the block ends without an error."""
    partial = final.parent / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    _sync_tree(partial)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(partial, final)
    sync(final.parent)


def shards_of(run: Path) -> list[Path]:
    """The Parquet files of a finished run's dataset."""
    return sorted((run / "dataset" / "data").glob("*.parquet"))


def read_stage(folder: Path, features: Features) -> Dataset:
    """The columns `features` of a stage's rows; texts that it did not write come from where they were loaded."""
    own = read_arrow(folder / ROWS)
    absent = [name for name in features if name not in own.column_names]
    if absent:
        loaded = read_arrow(folder.parent / LOAD / ROWS)
        places = places_of(own["id"], loaded["id"])
        texts = table_of(rows_at(dataset_of(loaded.select(absent)), places))
        for name in absent:
            own = own.append_column(name, texts[name])
    return dataset_of(own.select(list(features)).cast(features.arrow_schema))


def write_arrow(path: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
    """Write a table, given part by part, as an Arrow stream."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for part in parts:
            stream.write_table(part)


def read_arrow(path: Path) -> pa.Table:
    """What `write_arrow` wrote, mapped into memory.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(map_file(path))) as stream:
            return stream.read_all()
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None):  # of the system, which names the file
            raise
        raise ValueError(DAMAGED.format(path, error)) from error


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(DAMAGED.format(path, error)) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a crash leaves the old file or the new one, never half of one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            sync(Path(root) / name)
        sync(Path(root))
