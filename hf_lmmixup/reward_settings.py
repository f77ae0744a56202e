"""What configures the rewards: environment variables, which a TRL recipe sets in its `env:` block.

    HF_LMMIXUP_DATASTORE            folder, Hub id, or `bundled`; unset: the quality reward abstains
    HF_LMMIXUP_ENCODER              folder or Hub id; unset: the encoder of the datastore, else the offline MiniLM
    HF_LMMIXUP_ENCODER_PRECISION    auto (default), float32 or bfloat16
    HF_LMMIXUP_QUALITY_MODE         nearest (default) or upstream
    HF_LMMIXUP_QUALITY_JUDGE        default, head or neighbors
    HF_LMMIXUP_MIXUP_WEIGHTS        JSON, for all task types or by task type

TRL names a reward by its dotted path and cannot pass it arguments, so there is no other way in. They are checked when
the rewards are imported, before TRL loads a model, and read at every call; encoder and datastore are loaded at the
first one and kept. One recipe::

    env:
      HF_LMMIXUP_DATASTORE: bundled
      HF_LMMIXUP_MIXUP_WEIGHTS: '{"quality": 0.5, "alignment": 0.4, "format": 0.1}'
"""

import json
import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hf_lmmixup.bundled import rated_texts
from hf_lmmixup.datastore import ScoredDatastore, build
from hf_lmmixup.encoder import PRECISIONS, CachedEncoder, load_encoder
from hf_lmmixup.records import TaskType


logger = logging.getLogger(__name__)

VARIABLES = tuple(
    f"HF_LMMIXUP_{name}"
    for name in ("DATASTORE", "ENCODER", "ENCODER_PRECISION", "QUALITY_MODE", "QUALITY_JUDGE", "MIXUP_WEIGHTS")
)

BUNDLED = "bundled"
QUALITY_MODES = ("nearest", "upstream")
QUALITY_JUDGES = ("default", "head", "neighbors")

MIXUP_WEIGHTS = {"quality": 0.5, "alignment": 0.4, "format": 0.1}
"""Published weights, the same for every task type (arXiv 2510.20449, configuration)."""


def check_settings() -> None:
    """Find mistakes of the variables before anything is trained; a datastore on the Hub is fetched.

    Raises:
        ValueError: If a variable has an unknown value, or the datastore is not there.
    """
    quality_mode(), quality_judge(), _choice("HF_LMMIXUP_ENCODER_PRECISION", PRECISIONS)
    _weights(os.environ.get("HF_LMMIXUP_MIXUP_WEIGHTS") or "{}")
    where = os.environ.get("HF_LMMIXUP_DATASTORE")
    if not where or where == BUNDLED:
        return
    try:
        _stored(where)
    except (OSError, ValueError) as error:
        raise ValueError(f"HF_LMMIXUP_DATASTORE={where!r} cannot be used, nor is it 'bundled': {error}") from error


def quality_mode() -> str:
    """How an expected score becomes a reward."""
    return _choice("HF_LMMIXUP_QUALITY_MODE", QUALITY_MODES)


def quality_judge() -> str | None:
    """Who finds the expected score; `None` leaves it to the datastore. The published code asks the neighbors."""
    chosen = _choice("HF_LMMIXUP_QUALITY_JUDGE", QUALITY_JUDGES)
    if chosen == "default":
        return "neighbors" if quality_mode() == "upstream" else None
    return chosen


def mixup_weights(kind: TaskType) -> dict[str, float]:
    """The weights of one task type; a weight of 0 takes its part out."""
    return _weights(os.environ.get("HF_LMMIXUP_MIXUP_WEIGHTS") or "{}")[kind.value]


def loaded_encoder() -> CachedEncoder:
    """The encoder that all rewards share, with the vectors of the texts met so far."""
    name, revision = os.environ.get("HF_LMMIXUP_ENCODER") or None, None
    where = os.environ.get("HF_LMMIXUP_DATASTORE")
    if where and where != BUNDLED and name in (None, _stored(where).encoder):
        name, revision = _stored(where).encoder, _stored(where).encoder_revision
    return _encoder(name, revision, _choice("HF_LMMIXUP_ENCODER_PRECISION", PRECISIONS))


def loaded_datastore() -> ScoredDatastore | None:
    """The datastore of the quality reward; `None`, said once, if none is named.

    Raises:
        ValueError: If it was made with another encoder than the one named.
    """
    where = os.environ.get("HF_LMMIXUP_DATASTORE")
    if not where:
        _say_once(
            "HF_LMMIXUP_DATASTORE is not set, so the quality reward abstains (None). Set it to a datastore's folder "
            "or Hub id, or to 'bundled' for the one that comes with the package."
        )
        return None
    encoder = loaded_encoder()
    datastore = _bundled(encoder) if where == BUNDLED else _stored(where)
    if datastore.encoder != encoder.name:
        raise ValueError(
            f"HF_LMMIXUP_ENCODER={encoder.name!r}, but the datastore {where} was made with {datastore.encoder!r}. "
            "Unset HF_LMMIXUP_ENCODER or build the datastore again."
        )
    return datastore


@lru_cache(maxsize=4)
def _encoder(name: str | None, revision: str | None, precision: str) -> CachedEncoder:
    return CachedEncoder(load_encoder(name, revision=revision, precision=precision))


@lru_cache(maxsize=4)
def _stored(where: str) -> ScoredDatastore:
    return ScoredDatastore.from_pretrained(where)


@lru_cache(maxsize=4)
def _bundled(encoder: CachedEncoder) -> ScoredDatastore:
    rows = rated_texts("train")
    return build([row.text for row in rows], [row.score for row in rows], [row.task_type for row in rows], encoder)


@lru_cache(maxsize=1)
def _say_once(message: str) -> None:
    logger.warning(message)


def _choice(variable: str, allowed: Sequence[str]) -> str:
    value = os.environ.get(variable) or allowed[0]
    if value not in allowed:
        raise ValueError(f"{variable}={value!r} is unknown. Expected one of {list(allowed)}.")
    return value


@lru_cache(maxsize=4)
def _weights(text: str) -> dict[str, dict[str, float]]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ValueError(f"HF_LMMIXUP_MIXUP_WEIGHTS is not valid JSON: {error}") from error
    kinds = [kind.value for kind in TaskType]
    if not isinstance(given, dict) or not (set(given) <= set(kinds) or set(given) <= set(MIXUP_WEIGHTS)):
        raise ValueError(
            f"HF_LMMIXUP_MIXUP_WEIGHTS={text} must name either parts, out of {list(MIXUP_WEIGHTS)}, or task types, "
            f"out of {kinds}, with the weights of their parts."
        )
    by_kind: dict[str, Any] = given if set(given) <= set(kinds) else dict.fromkeys(kinds, given)
    return {kind: {**MIXUP_WEIGHTS, **_checked(kind, by_kind.get(kind, {}))} for kind in kinds}


def _checked(kind: str, given: Any) -> dict[str, float]:
    for part, weight in given.items() if isinstance(given, dict) else [(given, None)]:
        fine = isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 <= weight < float("inf")
        if part not in MIXUP_WEIGHTS or not fine:
            raise ValueError(
                f"HF_LMMIXUP_MIXUP_WEIGHTS: {kind} has {part!r}: {weight!r}. Expected one of {list(MIXUP_WEIGHTS)} "
                "with a weight of 0 or more."
            )
    return given
