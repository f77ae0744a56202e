"""The commands of `lmmixup`, one file for each group; `hf_lmmixup.cli` puts them together."""
