"""SFTMix (arXiv 2410.05248): fine-tuning with mixed hidden states of confident and unconfident rows.

Two steps: measure the confidence of every row in a reference run (`ConfidenceCallback`, `lmmixup confidence`), then
train with `SFTMixTrainer` on the rows joined with their confidence (`attach_confidence`).

The names below load what they need when first used; the ones that only handle tables load no torch.
"""

from typing import TYPE_CHECKING

from hf_lmmixup.public_names import load_when_used


if TYPE_CHECKING:
    from hf_lmmixup.sftmix.confidence import (
        attach_confidence,
        load_confidence,
        merge_confidence,
        save_confidence,
        split_by_confidence,
    )
    from hf_lmmixup.sftmix.confidence_callback import ConfidenceCallback
    from hf_lmmixup.sftmix.confidence_plot import confidence_plot, save_confidence_plot
    from hf_lmmixup.sftmix.reference_run import record_confidence, score_checkpoints
    from hf_lmmixup.sftmix.sftmix_config import SFTMixConfig
    from hf_lmmixup.sftmix.sftmix_trainer import SFTMixTrainer

_MODULE_OF = {
    "ConfidenceCallback": "confidence_callback",
    "SFTMixConfig": "sftmix_config",
    "SFTMixTrainer": "sftmix_trainer",
    "attach_confidence": "confidence",
    "confidence_plot": "confidence_plot",
    "load_confidence": "confidence",
    "merge_confidence": "confidence",
    "record_confidence": "reference_run",
    "save_confidence": "confidence",
    "save_confidence_plot": "confidence_plot",
    "score_checkpoints": "reference_run",
    "split_by_confidence": "confidence",
}

__all__ = [
    "ConfidenceCallback",
    "SFTMixConfig",
    "SFTMixTrainer",
    "attach_confidence",
    "confidence_plot",
    "load_confidence",
    "merge_confidence",
    "record_confidence",
    "save_confidence",
    "save_confidence_plot",
    "score_checkpoints",
    "split_by_confidence",
]

if not TYPE_CHECKING:  # which would take it for a promise that every name exists
    __getattr__, __dir__ = load_when_used(__name__, _MODULE_OF, __all__)
