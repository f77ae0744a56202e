"""An earlier run goes on with more rows: what is known is not embedded, rated or distilled again."""

import dataclasses
import errno
import json
import os

import numpy as np
import pytest
from borrowed_tools import CopyingWriter, raw_rows, tools
from datasets import Dataset
from hashing_encoder import HashingEncoder
from test_modes import TRAINING_FREE, recipe

from hf_lmmixup.attachment import attach
from hf_lmmixup.pipeline import run
from hf_lmmixup.recipe import ClusterRecipe, DistillerRecipe
from hf_lmmixup.records import pair_text, row_id
from hf_lmmixup.run_directory import read_arrow
from hf_lmmixup.stages import costs_of
from hf_lmmixup.vectors import DONE, EMBEDDINGS, KnownTexts, Vectors, embed


OLD, NEW = raw_rows(range(18)), raw_rows(range(18, 23))


def members(folder):
    """Frozen sets of the ids of each cluster."""
    table = read_arrow(folder / "stages/4_cluster/rows.arrow").to_pydict()
    found = {}
    for identifier, number in zip(table["id"], table["cluster_id"], strict=True):
        found.setdefault(number, set()).add(identifier)
    return {frozenset(ids) for ids in found.values()}


def test_only_new_rows_are_embedded_and_only_dirty_clusters_distilled(tmp_path):
    run(recipe(tmp_path, "may", OLD, distiller=TRAINING_FREE), tools=tools())
    writer, own = CopyingWriter(), tools()
    borrowed = type(own)(own.encoder, judge=own.judge, writer=tools(writer).writer)
    finished = run(
        recipe(tmp_path, "june", OLD + NEW, distiller=TRAINING_FREE), tools=borrowed, update=tmp_path / "may"
    )
    pairs = {pair_text(row["prompt"], row["completion"]) for row in OLD}
    new = [pair_text(row["prompt"], row["completion"]) for row in NEW]
    assert not pairs & set(own.encoder.encoded)
    assert [text for text in own.encoder.encoded if text in new] == sorted(
        new, key=dict(zip(new, (row_id(row["prompt"], row["completion"]) for row in NEW), strict=True)).__getitem__
    )
    before, after = members(tmp_path / "may"), members(tmp_path / "june")
    dirty = after - before
    assert 0 < len(dirty) < len(after)
    assert len(writer.asked) == len(dirty)
    assert finished.ledger["rows_in"] == 23
    for cluster in before:  # nobody lost a member or was parted
        assert any(cluster <= grown for grown in after)


def test_what_the_earlier_run_paid_for_is_not_spent_again(tmp_path):
    priced = dataclasses.replace(TRAINING_FREE, prompt_price=1000.0, completion_price=1000.0)
    for name, rows, update in (("may", OLD, None), ("june", OLD + NEW, "may"), ("july", OLD + NEW, "june")):
        run(recipe(tmp_path, name, rows, distiller=priced), tools=tools(), update=update and tmp_path / update)
    may, june, july = (costs_of(tmp_path / name)["7_distil"] for name in ("may", "june", "july"))
    assert 0 < june["tokens"] < may["tokens"] and 0 < june["money"] < may["money"]
    assert (july["tokens"], july["money"]) == (0, 0.0)


def test_extractive_clusters_that_did_not_change_cost_nothing(tmp_path):
    extractive = DistillerRecipe(mode="extractive")
    run(recipe(tmp_path, "may", OLD, distiller=extractive), tools=tools())
    again = tools()
    run(recipe(tmp_path, "june", OLD, distiller=extractive), tools=again, update=tmp_path / "may")
    raw = {pair_text(row["prompt"], row["completion"]) for row in OLD}
    assert not raw & set(again.encoder.encoded)
    data = "dataset/data/train-00000-of-00001.parquet"
    assert (tmp_path / "may" / data).read_bytes() == (tmp_path / "june" / data).read_bytes()


def test_other_settings_are_refused_by_name(tmp_path):
    run(recipe(tmp_path, "may", OLD), tools=tools())
    changed = recipe(tmp_path, "june", OLD + NEW, cluster=ClusterRecipe(max_size=4))
    with pytest.raises(ValueError, match=r"cluster\.max_size=5.*4"):
        run(changed, tools=tools(), update=tmp_path / "may")
    with pytest.raises(FileNotFoundError, match="no finished run"):
        run(changed, tools=tools(), update=tmp_path / "april")
    other = tools()
    other.encoder.name = "another"
    with pytest.raises(ValueError, match="embedded by 'hashing'"):
        run(recipe(tmp_path, "july", OLD + NEW), tools=other, update=tmp_path / "may")


def unit(*angles):
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


ATTACHED = [  # angles of rows a, b, c ..., earlier clusters, clusters afterwards
    ((0, 2, 1), {"a": 0, "b": 0}, [{"a", "b", "c"}]),
    ((0, 2, 70, 72), {"a": 0, "b": 0}, [{"a", "b"}, {"c", "d"}]),  # far from the old ones: a cluster of their own
    ((0, 2, 1, 3, 40, 42), {"a": 0, "b": 0, "c": 0}, [{"a", "b", "c"}, {"e", "f"}]),  # no room: d stays alone
    ((0, 1, 2, 3), {"a": 0, "b": 0, "x": 1, "c": 1}, [{"a", "b", "c"}]),  # x is gone: c joins, then it is full
    ((0, 30, 60), {"a": 0, "b": 0}, [{"a", "b"}]),  # c is near b, not near a
]


@pytest.mark.parametrize(("angles", "earlier", "clusters"), ATTACHED)
def test_attach(angles, earlier, clusters):
    ids = list("abcdef"[: len(angles)])
    rows = Dataset.from_dict({"id": ids})
    options = {"max_size": 3, "mean_size": 2.0, "std_size": 0.0, "min_similarity": 0.8}
    expected = None
    for order in (list(range(len(ids))), list(range(len(ids)))[::-1]):
        outcome = attach(rows.select(order), unit(*angles)[order], earlier, **options)
        found = {}
        for identifier, number in zip(outcome.dataset["id"], outcome.dataset["cluster_id"], strict=True):
            found.setdefault(number, set()).add(identifier)
        found.pop(None, None)
        assert sorted(found.values(), key=min) == clusters
        assert expected in (None, outcome.dataset.to_list())
        expected = outcome.dataset.to_list()


def test_attach_refuses_unknown_routes():
    with pytest.raises(ValueError, match="Unknown singletons='lose'"):
        attach(Dataset.from_dict({"id": ["a"]}), unit(0), {}, singletons="lose")


def rows_of(count):
    made = [{"id": f"{number:02d}", **row} for number, row in enumerate(raw_rows(range(count)))]
    return Dataset.from_list(made)


def test_a_block_that_cannot_be_written_is_not_marked_as_done(tmp_path):
    class Narrowing(HashingEncoder):
        def encode(self, texts):
            vectors = super().encode(texts)
            return vectors if len(self.encoded) <= 4 else vectors[:, :-1]

    with pytest.raises(ValueError, match="broadcast"):
        embed(rows_of(10), Narrowing(), tmp_path, block=4)
    assert json.loads((tmp_path / DONE).read_text())["done"] == 4


@pytest.mark.parametrize("seconds", [0, 3600])
def test_marks_are_a_while_apart_and_one_stands_at_the_end(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr("hf_lmmixup.vectors.MARK_SECONDS", seconds)
    seen = []

    def told(done):
        seen.append(json.loads((tmp_path / DONE).read_text())["done"] if (tmp_path / DONE).is_file() else 0)

    embed(rows_of(10), HashingEncoder(), tmp_path, block=4, progress=told)
    assert seen == ([0, 0, 0] if seconds else [4, 8, 10])
    assert json.loads((tmp_path / DONE).read_text())["done"] == 10


def test_embedding_goes_on_behind_its_last_block(tmp_path):
    rows, encoder = rows_of(10), HashingEncoder()

    class Dying(HashingEncoder):
        def encode(self, texts):
            if len(self.encoded) >= 8:
                raise KeyboardInterrupt
            return super().encode(texts)

    with pytest.raises(KeyboardInterrupt):
        embed(rows, Dying(), tmp_path, block=4)
    assert json.loads((tmp_path / DONE).read_text())["done"] == 8
    embed(rows, encoder, tmp_path, block=4)
    assert len(encoder.encoded) == 2
    vectors = Vectors(tmp_path, rows["id"][:])
    texts = [pair_text(row["prompt"], row["completion"]) for row in rows]
    np.testing.assert_array_equal(vectors.matrix, HashingEncoder().encode(texts).astype(np.float16))
    assert len(vectors.graph) == 10
    known = KnownTexts(encoder, rows, vectors)
    encoder.encoded.clear()
    np.testing.assert_allclose(
        known.encode([*texts[3:5], "other"])[:2], HashingEncoder().encode(texts[3:5]), atol=1e-3
    )
    assert encoder.encoded == ["other"]
    other = rows_of(9)  # other rows do not go on from it
    embed(other, HashingEncoder(), tmp_path, block=4)
    assert len(Vectors(tmp_path, other["id"][:]).matrix) == 9


def test_the_room_of_all_vectors_is_taken_before_the_first_are_written(tmp_path):
    """A disk that is full when a mapped page is written ends the process without a word."""
    rooms = []

    def told(done):
        file = (tmp_path / EMBEDDINGS).stat()
        rooms.append(file.st_blocks * 512 >= file.st_size > 200_000)

    embed(rows_of(2000), HashingEncoder(), tmp_path, block=1000, progress=told)
    assert rooms == [True, True]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EOPNOTSUPP])
def test_a_disk_without_room_for_the_vectors_is_named(number, tmp_path, monkeypatch):
    def full(file, start, length):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    if number == errno.EOPNOTSUPP:  # then it cannot be known beforehand
        embed(rows_of(10), HashingEncoder(), tmp_path)
        assert len(np.load(tmp_path / EMBEDDINGS)) == 10
        return
    with pytest.raises(OSError, match=f"{tmp_path}/{EMBEDDINGS}"):
        embed(rows_of(10), HashingEncoder(), tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_empty_file_of_vectors_is_named(tmp_path):  # NumPy raises EOFError, which ends a command as "Aborted."
    (tmp_path / EMBEDDINGS).touch()
    with pytest.raises(ValueError, match=f"{EMBEDDINGS} is damaged"):
        Vectors(tmp_path, [])
