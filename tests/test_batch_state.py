import random

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from hf_lmmixup import batch_state
from hf_lmmixup.batch_state import BatchState


SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=6)),  # a window shorter than the rows
}


def logits_alone(model, text):
    """The plain computation: one row, no cache, no padding."""
    return model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(4))
def test_rows_that_join_and_leave_in_any_order_read_as_if_alone(name, seed, monkeypatch):
    monkeypatch.setattr(batch_state, "ROOM", 5)  # buffers fill up and move often
    torch.manual_seed(seed)
    model, rng = MODELS[name]().eval(), random.Random(seed)

    def new_rows(most):
        return [[rng.randrange(64) for _ in range(rng.randint(1, 14))] for _ in range(rng.randint(1, most))]

    with torch.inference_mode():
        texts = new_rows(5)
        logits, state = BatchState.read(model, texts)
        for _ in range(25):
            for row, text in zip(logits, texts, strict=True):
                torch.testing.assert_close(row, logits_alone(model, text), atol=1e-5, rtol=1e-4)
            if len(texts) > 1 and rng.random() < 0.5:
                kept = sorted(rng.sample(range(len(texts)), rng.randint(1, len(texts))))
                order = state.keep(kept)
                assert sorted(order) == kept
                texts = [texts[i] for i in order]
            if rng.random() < 0.4:
                coming = new_rows(3)
                fresh_logits, fresh = BatchState.read(model, coming)
                for row, text in zip(fresh_logits, coming, strict=True):
                    torch.testing.assert_close(row, logits_alone(model, text), atol=1e-5, rtol=1e-4)
                state = state.joined(fresh)
                texts += coming
            tokens = [rng.randrange(64) for _ in texts]
            for text, token in zip(texts, tokens, strict=True):
                text.append(token)
            logits = state.step(model, tokens)


def test_columns_that_no_row_needs_are_forgotten():
    model = MODELS["qwen2"]().eval()
    with torch.inference_mode():
        _, state = BatchState.read(model, [[1] * 30, [2] * 4])
        assert state.layers[0].keys.shape == (2, 2, 30, 4)
        assert state.keep([1]) == [1]
        assert state.layers[0].keys.shape == (1, 2, 4, 4)
