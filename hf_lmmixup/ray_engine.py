"""The expensive stages on a Ray cluster: embed, rate and distil, with the same bytes out as on one machine.

Actors hold the models, one each, on the processors or GPUs that a pool gives them; blocks of rows go to whichever
actor is free, and a block whose worker died is done again by another. What comes back is put in order of its place,
and every vector and completion depends on its row alone, so the result does not show how many workers there were.

    with connected("auto"):
        run(recipe, tools=cluster_tools(recipe, Pool(actors=8, gpus=1)))
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_lmmixup.datastore import ScoredDatastore
from hf_lmmixup.distillation import Messages
from hf_lmmixup.encoder import Encoder, load_encoder
from hf_lmmixup.generation import opened
from hf_lmmixup.preparation import Tools
from hf_lmmixup.prompts import prompt_room, prompt_tokens
from hf_lmmixup.rating import rate_with_datastore
from hf_lmmixup.recipe import TRAINING_FREE, DistillerRecipe, Recipe
from hf_lmmixup.records import RATED, Outcome, pair_text
from hf_lmmixup.vectors import texts_of
from hf_lmmixup.writers import Writer, count_bytes, open_writer, writing_settings


BLOCK = 256
"""Rows that an actor gets at a time: what a killed worker costs."""

JOURNEY = 1 << 18
"""Rows that are sent out at a time: each time the actors open their models anew."""

MISSING_RAY = 'Several machines need Ray: pip install "hf-lmmixup[ray]".'


@dataclass(frozen=True)
class Pool:
    """The actors of one kind.

    Attributes:
        actors: How many.
        cpus: Processors of each.
        gpus: GPUs of each; `tensor_parallel_size` of vLLM should not be more.
    """

    actors: int = 2
    cpus: float = 1.0
    gpus: float = 0.0


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Use a Ray cluster for the length of a block.

    Args:
        address: `auto` or `HOST:PORT` of a running cluster; `None` starts one on this machine, unless the process is
            connected already.

    Raises:
        ImportError: If the `ray` extra is missing.
        ConnectionError: If there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(MISSING_RAY) from error
    own = not ray.is_initialized()
    if own:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def spread(
    items: Sequence[Any],
    open_worker: Callable[[], Callable[[list[Any]], list[Any]]],
    pool: Pool,
    *,
    on_result: Callable[[int, Any], None] | None = None,
) -> list[Any]:
    """Map items by actors that hold what is slow to open.

    Args:
        items: Plain data.
        open_worker: Called once in each actor; makes the function from some items to as many results.
        pool: The actors.
        on_result: Called with place and result as soon as a block is back, in any order.

    Returns:
        The results in the order of the items.
    """
    import ray

    class Worker:
        def __init__(self) -> None:
            self.work = open_worker()

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            results = np.empty(len(batch["place"]), object)
            results[:] = self.work(list(batch["item"]))
            return {"place": batch["place"], "result": results}

    results: list[Any] = [None] * len(items)
    if not len(items):
        return results
    blocks = max(1, -(-len(items) // BLOCK))
    data = ray.data.from_items(
        [{"place": n, "item": item} for n, item in enumerate(items)], override_num_blocks=blocks
    )
    mapped = data.map_batches(
        Worker,
        batch_size=BLOCK,
        concurrency=pool.actors,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        # A worker that died is not the row's fault: its block is done again, by a new worker if need be.
        max_restarts=-1,
        max_task_retries=-1,
    )
    for row in mapped.iter_rows():
        results[row["place"]] = row["result"]
        if on_result is not None:
            on_result(row["place"], row["result"])
    return results


class ClusterEncoder:
    """An encoder whose texts are embedded by the actors of a pool.

    Args:
        open_encoder: Opens the encoder in an actor.
        name: The encoder's name.
        pool: The actors.
        revision: The encoder's revision.
    """

    def __init__(
        self, open_encoder: Callable[[], Encoder], name: str, pool: Pool, revision: str | None = None
    ) -> None:
        self.name, self.revision = name, revision
        self._open, self._pool = open_encoder, pool
        self._local: Encoder | None = None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows (n, d), float32."""
        if len(texts) < BLOCK:  # not worth a journey
            self._local = self._local or self._open()
            return self._local.encode(texts)
        opened = self._open
        vectors: np.ndarray = np.stack(spread(list(texts), lambda: _encode_by(opened()), self._pool))
        return vectors


class ClusterWriter:
    """A model that writes, in the actors of a pool.

    Args:
        open_model: Opens the writer in an actor.
        pool: The actors.
    """

    def __init__(self, open_model: Callable[[], Writer], pool: Pool) -> None:
        self._open, self._pool = open_model, pool

    def generate(
        self,
        conversations: Sequence[Messages],
        *,
        seeds: Sequence[int] | None = None,
        on_reply: Callable[[int, str | None], None] | None = None,
    ) -> list[str | None]:
        """One completion for each conversation; see `distillation.Generate`."""
        opened = self._open
        given = [None] * len(conversations) if seeds is None else list(seeds)
        items = [{"messages": messages, "seed": seed} for messages, seed in zip(conversations, given, strict=True)]

        def taken(place: int, reply: tuple[bool, str | None]) -> None:
            is_answered, text = reply
            if on_reply is not None and is_answered:
                on_reply(place, text)

        replies = spread(items, lambda: _write_by(opened()), self._pool, on_result=taken)
        return [text for _, text in replies]


def cluster_rater(pool: Pool) -> Callable[[Dataset, ScoredDatastore, Encoder], Outcome]:
    """`rating.rate_with_datastore`, its rows rated by the actors of a pool; the vectors travel with the rows."""

    def rate(rows: Dataset, datastore: ScoredDatastore, encoder: Encoder) -> Outcome:
        texts = list(texts_of(rows))
        items = [
            {"prompt": row["prompt"], "completion": row["completion"], "vector": vector}
            for row, vector in zip(rows.select_columns(["prompt", "completion"]), encoder.encode(texts), strict=True)
        ]
        judged = spread(items, lambda: _rate_by(datastore), pool)
        for place, name in enumerate(("rating", "score", "rating_error")):
            column: Any = pa.array([row[place] for row in judged], RATED.arrow_schema.field(name).type)
            rows = rows.add_column(name, column, feature=RATED[name])
        return Outcome(rows)

    return rate


def cluster_tools(recipe: Recipe, pool: Pool) -> Tools:
    """The tools of a run on a connected cluster: the recipe's encoder and an untrained distiller in actors.

    A distiller that the run trains itself is trained where the run was started, and writes there.
    """
    local = load_encoder(recipe.encoder)
    name, options = recipe.encoder, recipe.distiller
    encoder = ClusterEncoder(lambda: load_encoder(name), local.name, pool, local.revision)
    if options.mode != TRAINING_FREE:
        return Tools(encoder, JOURNEY, rater=cluster_rater(pool))
    return Tools(encoder, JOURNEY, rater=cluster_rater(pool), writer=_cluster_writer(options, pool))


def _cluster_writer(options: DistillerRecipe, pool: Pool) -> Writer:
    writer = ClusterWriter(lambda: open_writer(options, options.model), pool)
    return Writer(
        options.model, writer.generate, writing_settings(options), *_prompt_limit(options), at_a_time=JOURNEY
    )


def _prompt_limit(options: DistillerRecipe) -> tuple[int | None, Callable[[Messages], int]]:
    """Longest prompt and how it is measured, as the model in an actor does it; here only its tokenizer is loaded."""
    if options.endpoint is not None:
        return options.max_prompt_tokens, count_bytes
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = opened(AutoTokenizer, options.model)
    positions = getattr(opened(AutoConfig, options.model), "max_position_embeddings", None)

    def count(messages: Messages) -> int:
        return len(prompt_tokens(tokenizer, messages))

    return prompt_room(positions, options.max_new_tokens, options.max_prompt_tokens), count


class _Given:
    """An encoder that hands out the vectors that came with the texts."""

    def __init__(self, datastore: ScoredDatastore, vectors: dict[str, np.ndarray]) -> None:
        self.name, self.revision, self.vectors = datastore.encoder, datastore.encoder_revision, vectors

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.vectors[text] for text in texts])


def _rate_by(datastore: ScoredDatastore) -> Callable[[list[Any]], list[Any]]:
    def rate(items: list[Any]) -> list[Any]:
        texts = [pair_text(item["prompt"], item["completion"]) for item in items]
        given = _Given(datastore, dict(zip(texts, (item["vector"] for item in items), strict=True)))
        columns = {name: [item[name] for item in items] for name in ("prompt", "completion")}
        rated = rate_with_datastore(Dataset.from_dict({"id": texts, **columns}), datastore, given).dataset
        return list(zip(rated["rating"][:], rated["score"][:], rated["rating_error"][:], strict=True))

    return rate


def _encode_by(encoder: Encoder) -> Callable[[list[Any]], list[Any]]:
    return lambda texts: list(encoder.encode(texts))


def _write_by(writer: Writer) -> Callable[[list[Any]], list[Any]]:
    """Pairs of whether the writer told of a reply, which it does not where nobody answered, and the text."""

    def write(items: list[Any]) -> list[Any]:
        conversations = [list(item["messages"]) for item in items]
        seeds = [item["seed"] for item in items]
        told: set[int] = set()
        texts = writer.generate(
            conversations, seeds=None if seeds[0] is None else seeds, on_reply=lambda place, _: told.add(place)
        )
        return [(place in told, text) for place, text in enumerate(texts)]

    return write
