"""Mosaics as a dataset of every epoch: `datasets`, loaders, TRL's trainer."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from conftest import checkpointing
from datasets import Dataset, IterableDataset, Value
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from hf_lmmixup.mosaic import build_mosaics, mosaic, read_responses
from hf_lmmixup.mosaic_config import MosaicConfig
from hf_lmmixup.mosaic_stream import MosaicDataset
from hf_lmmixup.records import DISTILLED


WORDS = [f"w{i}" for i in range(80)]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<s> ' + message['role'] + ' ' + message['content'] + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> assistant ' }}{% endif %}"
)

# peft reads the old name of a switch that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("CI", "1")  # TRL reports no usage from there
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    names = ["<pad>", "<eos>", "<s>", "<unk>", "user", "assistant", "system", *WORDS]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    word = pre_tokenizers.Split(Regex(r"w\d+"), "isolated")  # also where a prompt meets its completion
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), word])
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    made.chat_template = CHAT_TEMPLATE
    return made


def rows(n=60):
    """Row i asks "w(i mod 80) w1 w1" and is answered by a text that names i."""
    return Dataset.from_dict(
        {
            "prompt": [f"w{i % 80} w1" for i in range(n)],
            "completion": [" ".join(["w2"] * (1 + i % 7) + [f"w{i % 80}", f"w{i // 80}"]) for i in range(n)],
        }
    )


CONFIG = MosaicConfig(max_tokens=120, max_items=5, seed=4)


def trainer(tmp_path, tokenizer, data, cls=SFTTrainer, **settings):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    values = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "max_length": 120,
        "num_train_epochs": 2,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **checkpointing(False),
    }
    args = SFTConfig(**values | settings)
    made = cls(Qwen2ForCausalLM(config), args=args, train_dataset=data, processing_class=tokenizer)
    made.seen = []
    return made


class Watching(SFTTrainer):
    def compute_loss(self, model, inputs, *rest, **named):
        for ids, labels in zip(inputs["input_ids"], inputs["labels"], strict=True):
            self.seen.append((ids[ids != 0].tolist(), labels[labels != -100].tolist()))
        return super().compute_loss(model, inputs, *rest, **named)


# ----------------------------------------------------------------- the dataset


def test_an_epoch_of_the_stream_is_a_pass(tokenizer):
    data = rows()
    stream = mosaic(data, tokenizer, CONFIG)
    assert isinstance(stream, IterableDataset) and isinstance(stream, torch.utils.data.IterableDataset)
    passes = []
    for epoch in (0, 1, 2, 1):
        stream.set_epoch(epoch)
        written, report = build_mosaics(data, tokenizer, CONFIG, epoch=epoch)
        passes.append(list(stream))
        assert passes[-1] == written.to_list() and len(passes[-1]) == len(stream) == report.examples
    assert passes[1] == passes[3] != passes[2]
    assert stream.features == written.features and stream.report.rows == 60


def test_the_length_survives_what_a_trainer_does(tokenizer):
    stream = mosaic(rows(), tokenizer, CONFIG)
    tokenized = stream.map(lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]})
    kept = tokenized.filter(lambda row: True).shuffle(seed=1).select_columns(["input_ids", "id"])
    for changed in (tokenized, kept, kept.remove_columns("input_ids")):
        assert isinstance(changed, MosaicDataset) and len(changed) == len(stream) == len(list(changed))
    first = [row["id"] for row in kept]
    kept.set_epoch(1)
    second = [row["id"] for row in kept]
    assert len(second) == len(stream) and set(first) != set(second)
    with pytest.raises(TypeError, match="len"):
        len(stream.map(lambda batch: batch, batched=True))


def test_workers_and_processes_share_one_pass(tokenizer):
    stream = mosaic(rows(), tokenizer, CONFIG).select_columns(["id"])
    alone = [row["id"] for row in stream]
    loader = DataLoader(stream, batch_size=4, num_workers=1, collate_fn=lambda batch: [row["id"] for row in batch])
    assert [name for batch in loader for name in batch] == alone
    shares = []
    for rank in range(2):
        shard = IterableDatasetShard(stream, batch_size=3, num_processes=2, process_index=rank)
        shard.set_epoch(0)
        shares.append([row["id"] for row in shard])
        assert len(shares[-1]) == len(shard)
    assert set(shares[0]) | set(shares[1]) == set(alone)
    assert len(shares[0] + shares[1]) - len(alone) < 6  # only the last batch is filled up
    with pytest.raises(IndexError, match="no shard 1 of 2"):
        stream.shard(num_shards=2, index=1)


def test_pickled_and_resumed(tokenizer):
    stream = mosaic(rows(), tokenizer, CONFIG)
    again = pickle.loads(pickle.dumps(stream))  # noqa: S301  # what a spawned worker does
    assert list(again) == list(stream) and len(again) == len(stream)
    stream.set_epoch(1)
    whole = list(stream)
    iterator = iter(stream)
    for _ in range(5):
        next(iterator)
    resumed = mosaic(rows(), tokenizer, CONFIG)
    resumed.set_epoch(1)
    resumed.load_state_dict(stream.state_dict())
    assert list(resumed) == whole[5:]


def test_a_stream_in_is_a_stream_out(tokenizer):
    data = rows(300)
    answers = sorted(data["completion"])
    stream = mosaic(data.to_iterable_dataset(), tokenizer, CONFIG, buffer_size=100)
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        examples = list(stream)
        assert sorted(answer for row in examples for (answer,) in read_responses(row)) == answers
        assert len(examples) < 220
        epochs.append(examples)
    assert epochs[0] != epochs[1]
    stream.set_epoch(0)
    assert list(stream) == epochs[0]
    counted = data.add_column("length", [9] * 300).to_iterable_dataset()
    assert len(list(mosaic(counted, None, CONFIG, token_counts="length"))) < 300
    unknown = data.add_column("confidence", [None] + [-1.5] * 299, feature=Value("float64")).to_iterable_dataset()
    apart = mosaic(unknown, None, MosaicConfig(max_tokens=None, keep_apart="confidence"))
    assert apart.features["confidence"] == Value("float64")  # whatever the first row holds
    with pytest.raises(ValueError, match="as the name of a column"):
        mosaic(counted, None, CONFIG, token_counts=[9] * 300)
    with pytest.raises(ValueError, match="nothing to join"):
        mosaic(IterableDataset.from_generator(lambda: iter(())), tokenizer, CONFIG)


# ----------------------------------------------------------------- in the trainer


def test_trl_trains_on_a_new_pass_in_every_epoch(tmp_path, tokenizer):
    data = rows()
    stream = mosaic(data, tokenizer, CONFIG)
    run = trainer(tmp_path, tokenizer, stream, Watching)
    run.train()
    assert run.state.global_step == run.state.max_steps == 2 * -(-len(stream) // 4)
    for epoch in range(2):
        written, _ = build_mosaics(data, tokenizer, CONFIG, epoch=epoch)
        part = run.seen[epoch * len(stream) : (epoch + 1) * len(stream)]
        for (ids, labels), row in zip(part, written, strict=True):
            assert ids == tokenizer(row["prompt"] + row["completion"] + "<eos>")["input_ids"]
            answers = tokenizer(row["completion"] + "<eos>")["input_ids"]
            assert labels[-len(answers) + 1 :] == answers[1:]  # the loss is on the answers and the end
            assert abs(len(labels) - len(answers)) <= 1  # "w1" and "1." may share a token
            assert len(ids) <= 120


def test_trl_trains_on_the_mosaics_of_a_stream(tmp_path, tokenizer):
    data = rows()
    stream = mosaic(data.to_iterable_dataset(), tokenizer, CONFIG, buffer_size=30)
    stream.set_epoch(0)
    expected = [tokenizer(row["prompt"] + row["completion"] + "<eos>")["input_ids"] for row in stream]
    run = trainer(tmp_path, tokenizer, stream, Watching, max_steps=4)
    run.train()
    assert [ids for ids, _ in run.seen][: len(expected)] == expected[: len(run.seen)]
    assert run.state.global_step == 4 and len(run.seen) == 16


def test_trl_trains_conversations(tmp_path, tokenizer):
    plain = rows()
    messages = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}] * (1 + i % 2)
        for i, row in enumerate(plain)
    ]
    stream = mosaic(Dataset.from_dict({"messages": messages}), tokenizer, CONFIG)
    run = trainer(tmp_path, tokenizer, stream, Watching, num_train_epochs=1)
    run.train()
    written = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in stream]
    assert [ids for ids, _ in run.seen] == [tokenizer(text)["input_ids"] for text in written]
    assert max(len(ids) for ids, _ in run.seen) <= 120


def test_a_resumed_training_sees_what_it_would_have_seen(tmp_path, tokenizer):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = control.should_save = state.global_step == stop_at

    stream = mosaic(rows(), tokenizer, CONFIG)
    whole = trainer(tmp_path / "whole", tokenizer, mosaic(rows(), tokenizer, CONFIG), Watching)
    whole.train()
    stop_at = -(-len(stream) // 4) + 2  # in the second epoch
    first = trainer(tmp_path / "parts", tokenizer, stream, Watching, save_strategy="no")
    first.add_callback(Stop())
    first.train()
    second = trainer(tmp_path / "parts", tokenizer, mosaic(rows(), tokenizer, CONFIG), Watching)
    second.train(resume_from_checkpoint=True)
    assert first.seen + second.seen == whole.seen


def test_packing_needs_max_steps(tmp_path, tokenizer):
    stream = mosaic(rows(), tokenizer, CONFIG)
    with pytest.raises(ValueError, match="max_steps"):
        trainer(tmp_path, tokenizer, stream, packing=True, packing_strategy="wrapped")
    run = trainer(tmp_path, tokenizer, stream, packing=True, packing_strategy="wrapped", max_steps=2)
    run.train()
    assert run.state.global_step == 2


def test_distilled_rows_become_mosaics(tmp_path, tokenizer):
    plain = rows(20)
    distilled = Dataset.from_list(
        [
            {
                "id": f"d{i}",
                "prompt": row["prompt"],
                "completion": row["completion"],
                "reasoning": "w3",
                "cluster_id": i,
                "sources": ["a", "b"],
                "source_scores": [1, 2],
                "distiller": "tiny",
                "prompt_hash": "0",
            }
            for i, row in enumerate(plain)
        ],
        features=DISTILLED,
    )
    stream = mosaic(distilled, tokenizer, CONFIG)
    assert {source for row in stream for source in row["sources"]} == {f"d{i}" for i in range(20)}
    run = trainer(tmp_path, tokenizer, stream, num_train_epochs=1)
    run.train()
    assert run.state.global_step == -(-len(stream) // 4)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")  # TRL's default, by its old name
def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "mosaic.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in code:
        exec(compile(block, "mosaic.md", "exec"), names)
    assert len(code) == 2 and names["report"].rows == 48
    assert {source for row in names["examples"] for source in row["sources"]} >= {names["source"]}
