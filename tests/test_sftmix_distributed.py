"""Two processes (gloo) give the weights and the confidences of one; the file is also the program that they run."""

import os
from pathlib import Path

import numpy as np
import torch
from conftest import checkpointing
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import SFTConfig, SFTTrainer
from trl_forks import failures, job, run_jobs

from hf_lmmixup.sftmix.confidence import load_confidence
from hf_lmmixup.sftmix.confidence_callback import ConfidenceCallback
from hf_lmmixup.sftmix.sftmix_config import SFTMixConfig
from hf_lmmixup.sftmix.sftmix_trainer import SFTMixTrainer


VOCABULARY = 61


def make_tokenizer():
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def make_model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config).double()


def make_rows(count):
    rng = np.random.default_rng(count)
    rows = []
    for number in range(count):
        prompt, response = rng.integers(1, 4), rng.integers(1, 9)
        ids = rng.integers(2, VOCABULARY, prompt + response).tolist()
        labels = [-100] * prompt + ids[prompt:]
        rows.append({"id": f"r{number}", "input_ids": ids, "labels": labels, "confidence": -float(rng.random())})
    return Dataset.from_list(rows)


def common(out, size, accumulation):
    return {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
        **checkpointing(False),
        "dataloader_pin_memory": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "optim": "sgd",
    }


def mixed_run(out, size, accumulation):
    """Three optimizer steps of eight rows; saves the weights after them and returns the number of processes."""
    trainer = SFTMixTrainer(
        model=make_model(),
        args=SFTMixConfig(**common(out, size, accumulation), max_steps=3, learning_rate=0.5, mixup_weight=0.7),
        train_dataset=make_rows(16),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    if trainer.is_world_process_zero():
        save_file({name: value.clone() for name, value in weights.items()}, out / f"mixed-{accumulation}.safetensors")
    return trainer.accelerator.num_processes


def confidence_run(out, size, online):
    """Eleven rows, so that the last batch of an epoch is filled up with rows seen before."""
    trainer = SFTTrainer(
        model=make_model(),
        args=SFTConfig(**common(out, size, 1), num_train_epochs=2, learning_rate=0.0),
        train_dataset=make_rows(11),
        processing_class=make_tokenizer(),
    )
    callback = ConfidenceCallback(trainer, checkpoints=1, online=online, output=out / f"online-{online}.parquet")
    trainer.add_callback(callback)
    trainer.train()
    assert len(callback.table) == 11  # every process holds the whole table


def main(arguments):
    torch.set_num_threads(1)
    out, processes = Path(arguments[0]), int(os.environ.get("WORLD_SIZE", "1"))
    for accumulation in (1, 2):
        assert mixed_run(out, 8 // processes // accumulation, accumulation) == processes
    for online in (False, True):
        confidence_run(out, 4 // processes, online)


def test_two_processes_equal_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    jobs = [job(__file__, [one], tmp_path / "log"), job(__file__, [two], tmp_path / "log", processes=2)]
    codes = run_jobs(*jobs)
    assert codes == [0, 0], failures(codes, *jobs)

    for accumulation in (1, 2):
        expected, found = (load_file(folder / f"mixed-{accumulation}.safetensors") for folder in (one, two))
        start = make_model().state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)
        assert any(not torch.equal(value, start[name]) for name, value in expected.items())
    for online in (False, True):
        expected, found = (load_confidence(folder / f"online-{online}.parquet") for folder in (one, two))
        assert [row["id"] for row in found] == [row["id"] for row in expected]
        for row, other in zip(expected, found, strict=True):
            assert row["checkpoints"] == other["checkpoints"] and row["tokens"] == other["tokens"]
            np.testing.assert_allclose(other["nll"], row["nll"], rtol=1e-5)
