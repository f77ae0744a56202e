"""The tiny distiller's heads see the labels, also after the model has read."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_lmmixup.prompts import ANSWER_LABELS, distillation_messages, format_completion
from hf_lmmixup.tiny_distiller import build_tiny_distiller


TEXTS = [
    "Q: Why do tides rise?\nA: The Moon pulls the oceans, and the Sun helps a little.",
    "Statement: Bread rises because yeast makes gas.\nAnswer: True. The gas swells the dough.",
    "Q: What is heat?\nA) A kind of energy\nB) A color\nC) A sound\nD) A smell\nAnswer: A) A kind of energy. Yes.",
    "C: Steam\nS: Water turns into steam when it boils, and a lid over the pot holds it back for a while.",
]
LABELS = {label for labels in ANSWER_LABELS.values() for label in labels}
LABELS |= {"<think>", "</think>", "<answer>", "</answer>", "<|im_start|>"}


@pytest.mark.parametrize("documents", [(), [TEXTS, TEXTS[::-1]]], ids=["drawn", "after reading"])
def test_one_head_looks_at_the_last_label_and_one_at_all_labels(tmp_path, documents):
    build_tiny_distiller(tmp_path, TEXTS, documents=documents, reading_steps=30)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    messages = distillation_messages(24 * TEXTS[:1], "qa")
    completion = format_completion("Both ask about tides; the second is longer and names the Sun as well.", TEXTS[0])
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt + completion, return_tensors="pt")["input_ids"]
    assert ids.shape[1] > 600  # far more than a cosine with a short period could order
    with torch.no_grad():
        last, all_labels = model(input_ids=ids, output_attentions=True).attentions[0][0, :2]
    tokens = [tokenizer.decode([token]) for token in ids[0]]
    labels = [place for place, token in enumerate(tokens) if token in LABELS]
    for place in range(len(tokenizer(prompt)["input_ids"]), len(tokens)):
        seen = [label for label in labels if label <= place]
        assert last[place, seen[-1]] > 0.4 and last[place, seen].sum() > 0.99
        assert last[place].argmax() == seen[-1]
        assert all_labels[place, seen].sum() > 0.9


def test_a_file_in_the_place_of_the_folder_is_found_at_once(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(FileExistsError):
        build_tiny_distiller(tmp_path / "model", TEXTS)
    assert (tmp_path / "model").read_text() == "mine"
