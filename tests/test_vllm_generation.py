import importlib.machinery
import sys
import types

import pytest

from hf_lmmixup import vllm_generation
from hf_lmmixup.vllm_generation import NGRAM, SUFFIX, VLLMGenerator


class Tokenizer:
    """One token a word."""

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        assert add_generation_prompt and not tokenize
        return " ".join(message["content"] for message in messages) + " assistant"

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [len(word) for word in text.split()]}


class FakeLLM:
    """What the generator uses of vLLM's offline engine: it writes the prompt's length."""

    def __init__(self, **settings):
        self.settings, self.calls = settings, []
        self.llm_engine = types.SimpleNamespace(model_config=types.SimpleNamespace(max_model_len=20))

    def get_tokenizer(self):
        return Tokenizer()

    def generate(self, prompts, parameters, use_tqdm):
        self.calls.append(parameters)
        texts = [f"<answer>{len(prompt['prompt_token_ids'])}</answer><|im_end|>" for prompt in prompts]
        return [types.SimpleNamespace(outputs=[types.SimpleNamespace(text=text)]) for text in texts]


@pytest.fixture
def vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLLM, lambda **given: given
    monkeypatch.setitem(sys.modules, "vllm", module)


def ask(*lengths):
    return [[{"role": "user", "content": "x " * length}] for length in lengths]


def test_rows_are_written_in_chunks_with_their_seeds(vllm, monkeypatch):
    monkeypatch.setattr(vllm_generation, "CHUNK", 2)
    generator, told = VLLMGenerator("m", max_new_tokens=10), []
    texts = generator.generate(ask(1, 2, 3), seeds=[7, 8, 9], on_reply=lambda *reply: told.append(reply))
    assert texts == ["<answer>2</answer>", "<answer>3</answer>", "<answer>4</answer>"]
    assert told == list(enumerate(texts))
    assert [[row["seed"] for row in call] for call in generator._engine.calls] == [[7, 8], [9]]
    row = generator._engine.calls[0][0]
    assert (row["temperature"], row["max_tokens"], row["stop"]) == (0.7, 10, ["</answer>"])
    assert row["include_stop_str_in_output"] and not row["skip_special_tokens"]
    generator.generate(ask(1))
    assert (generator._engine.calls[-1][0]["temperature"], generator._engine.calls[-1][0]["seed"]) == (0.0, None)


def test_a_prompt_that_does_not_fit_is_reported_and_never_cut(vllm, caplog):
    generator = VLLMGenerator("m", max_new_tokens=15)
    assert generator.max_prompt_tokens == 5 and generator.count_tokens(ask(4)[0]) == 5
    assert generator.generate(ask(4, 5)) == ["<answer>5</answer>", None]
    assert "1 of 2 prompts are too long" in caplog.text
    with pytest.raises(ValueError, match="max_new_tokens=25 leaves no room for a prompt in 20 positions"):
        VLLMGenerator("m", max_new_tokens=25)


@pytest.mark.parametrize("installed, expected", [(True, SUFFIX), (False, NGRAM)])
def test_speculation_takes_the_best_method_that_is_installed(vllm, monkeypatch, installed, expected):
    spec = importlib.machinery.ModuleSpec("arctic_inference", None) if installed else None
    monkeypatch.setattr(vllm_generation.util, "find_spec", lambda name: spec)
    settings = VLLMGenerator("m", max_new_tokens=1, tensor_parallel_size=2)._engine.settings
    assert settings["speculative_config"] == expected and settings["tensor_parallel_size"] == 2
    assert "speculative_config" not in VLLMGenerator("m", max_new_tokens=1, speculate=False)._engine.settings


def test_seeds_must_match_and_the_extra_must_be_there(vllm, monkeypatch):
    with pytest.raises(ValueError, match="1 seeds for 2 conversations"):
        VLLMGenerator("m", max_new_tokens=1).generate(ask(1, 1), seeds=[1])
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r'pip install "hf-lmmixup\[vllm\]"'):
        VLLMGenerator("m")
