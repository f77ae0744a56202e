"""Publishing on the Hub: cards and pushes of a run's dataset, distiller, datastore and report."""

from hf_lmmixup.cards import render_dataset_card


__all__ = ["render_dataset_card"]
