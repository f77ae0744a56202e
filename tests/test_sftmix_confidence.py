"""Confidence: tables, halves, and what the callback records against perplexities computed by hand."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from conftest import checkpointing
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from hf_lmmixup.sftmix.confidence import (
    ConfidenceRecord,
    attach_confidence,
    load_confidence,
    merge_confidence,
    save_confidence,
    split_by_confidence,
)
from hf_lmmixup.sftmix.confidence_callback import ConfidenceCallback
from hf_lmmixup.sftmix.confidence_plot import confidence_plot
from hf_lmmixup.sftmix.reference_run import record_confidence, score_checkpoints
from hf_lmmixup.tiny_distiller import build_tiny_distiller


VOCABULARY = 61
IGNORED = -100

# peft reads the old name of a switch that transformers has renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:`gradient_checkpointing`:FutureWarning"
)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("CI", "1")  # TRL reports no usage from there
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def tiny_model():
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config)


def random_rows(seed=0, count=9):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        prompt, response = rng.integers(1, 4), rng.integers(1, 9)
        ids = rng.integers(2, VOCABULARY, prompt + response).tolist()
        rows.append({"id": f"row{number}", "input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return rows


def plain_trainer(tmp_path, tokenizer, rows, model=None, peft_config=None, **changes):
    values = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        **checkpointing(False),
        "dataloader_pin_memory": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "seed": 5,
    }
    return SFTTrainer(
        model=model or tiny_model(),
        args=SFTConfig(**(values | changes)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def perplexity_by_hand(model, row):
    """One row at a time, no padding, float64, token by token."""
    logits = model.double()(torch.tensor([row["input_ids"]])).logits[0]
    steps = [t for t in range(len(row["labels"]) - 1) if row["labels"][t + 1] != IGNORED]
    nll = sum(-logits[t].log_softmax(0)[row["labels"][t + 1]].item() for t in steps)
    return math.exp(nll / len(steps)), len(steps)


# ----------------------------------------------------------------- tables


def record_of(values):
    record = ConfidenceRecord()
    for identifier, checkpoint, nll, tokens in values:
        record.add(identifier, checkpoint, nll, tokens)
    return record


def test_docstring_row():
    row = record_of([("5f1d0c8f1f0b7a52", 4, 31.5, 11), ("5f1d0c8f1f0b7a52", 8, 24.9, 11)]).to_dataset()[0]
    assert row["checkpoints"] == [4, 8] and [round(value, 2) for value in row["perplexity"]] == [17.53, 9.62]
    assert round(row["confidence"], 2) == -13.57  # minus the arithmetic mean of the perplexities


@settings(max_examples=25, deadline=None)
@given(
    entries=st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 3), st.floats(0, 900)), min_size=1),
    cuts=st.integers(1, 4),
)
def test_merging_parts_is_the_whole(entries, cuts):
    entries = [(identifier, checkpoint, nll, 3) for identifier, checkpoint, nll in entries]
    whole = record_of(entries).to_dataset()
    size = max(1, len(entries) // cuts)
    parts = [record_of(entries[i : i + size]).to_dataset() for i in range(0, len(entries), size)]
    assert merge_confidence(parts).to_list() == whole.to_list()
    assert merge_confidence([whole, whole]).to_list() == whole.to_list()


def test_save_and_load(tmp_path):
    table = record_of([("b", 1, 2.0, 1), ("a", 1, 1e6, 2)]).to_dataset()
    path = save_confidence(table, tmp_path / "new" / "confidence.parquet")
    assert load_confidence(path).to_list() == table.to_list()
    assert [row["id"] for row in table] == ["a", "b"]
    assert math.isfinite(table[0]["confidence"])  # exp(500000) is capped
    with pytest.raises(FileNotFoundError, match="lmmixup confidence"):
        load_confidence(tmp_path / "none.parquet")
    Dataset.from_dict({"x": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no confidence table"):
        load_confidence(tmp_path / "other.parquet")


def test_impossible_values():
    with pytest.raises(ValueError, match="no response tokens"):
        record_of([("a", 1, 2.0, 0)])
    with pytest.raises(ValueError, match="different tokenizers"):
        record_of([("a", 1, 2.0, 3), ("a", 2, 2.0, 4)])


@pytest.mark.parametrize(
    "values, ids, expected",
    [
        ([], None, []),
        ([-1.0], None, [0]),  # one row has no partner
        ([-1.0, -2.0], None, [1, -1]),
        ([-3.0, -1.0, -2.0], None, [-1, 1, 0]),  # odd: the middle one belongs to neither half
        ([-2.0, -2.0, -2.0, -2.0], ["d", "a", "c", "b"], [-1, 1, -1, 1]),  # ties by id
        ([-2.0, -2.0], None, [1, -1]),  # ties without ids: by position
        ([-1.0, None, float("nan"), -5.0], None, [1, 0, 0, -1]),  # unknown rows are unpaired
        ([0.0, -math.inf, -1.0, -2.0], None, [1, -1, 1, -1]),
        ([-2.0, -9.0, -2.0, None, -4.0], ["b", "x", "a", "y", "z"], [1, -1, 1, 0, -1]),  # the docstring
    ],
)
def test_split(values, ids, expected):
    assert split_by_confidence(values, ids).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.one_of(st.none(), st.sampled_from([-1.0, -2.0, -3.5])), max_size=30), seed=st.integers(0, 9))
def test_split_is_balanced_and_ignores_the_order_of_the_file(values, seed):
    ids = [f"{i:02d}" for i in range(len(values))]
    halves = split_by_confidence(values, ids)
    known = sum(value is not None for value in values)
    assert (halves == 1).sum() == (halves == -1).sum() == known // 2
    sure = [values[i] for i in np.flatnonzero(halves == 1)]
    unsure = [values[i] for i in np.flatnonzero(halves == -1)]
    assert not sure or min(sure) >= max(unsure)
    order = np.random.default_rng(seed).permutation(len(values))
    shuffled = split_by_confidence([values[i] for i in order], [ids[i] for i in order])
    assert shuffled.tolist() == halves[order].tolist()


def test_attach():
    table = record_of([("a", 1, 2.0, 2), ("a", 2, 4.0, 2), ("b", 1, 9.0, 3)]).to_dataset()
    rows = Dataset.from_dict({"id": ["b", "unseen", "a"], "prompt": ["1", "2", "3"]})
    joined = attach_confidence(rows, table)
    assert joined["confidence"][:] == [-math.exp(3), None, -(math.exp(1) + math.exp(2)) / 2]
    assert joined["prompt"][:] == ["1", "2", "3"]
    assert attach_confidence(joined, table).to_list() == joined.to_list()  # joined anew, not twice


def test_rows_that_were_not_measured_are_counted(caplog):
    table = record_of([("a", 1, 2.0, 2)]).to_dataset()
    attach_confidence(Dataset.from_dict({"id": ["a"]}), table)
    assert not caplog.records
    attach_confidence(Dataset.from_dict({"id": ["b", "a", "c"]}), table)
    assert "2 of 3 rows are not in the confidence table" in caplog.text


def test_columns_are_read_at_once():
    class Column(list):
        def __getitem__(self, key):
            assert isinstance(key, slice)  # single values of a column of `datasets` take 100 us each
            return super().__getitem__(key)

        def __iter__(self):
            raise AssertionError("so do these")

    assert split_by_confidence(Column([-1.0, None, -5.0]), Column("bac")).tolist() == [1, 0, -1]


def test_attach_refuses_strangers():
    table = record_of([("a", 1, 2.0, 2)]).to_dataset()
    with pytest.raises(ValueError, match="None of the 1 row ids"):
        attach_confidence(Dataset.from_list([{"id": "x"}]), table)
    with pytest.raises(ValueError, match="no `id` column"):
        attach_confidence(Dataset.from_list([{"prompt": "x"}]), table)


def test_plot_is_valid_and_counts_every_row():
    rng = np.random.default_rng(0)
    values = [-float(value) for value in np.exp(rng.normal(2, 1, 500)) + 1] + [None] * 3
    drawing = ElementTree.fromstring(confidence_plot(values))
    bars = list(drawing.iter("{http://www.w3.org/2000/svg}rect"))[1:]
    assert len({bar.get("fill") for bar in bars}) == 2
    assert "500 rows" in confidence_plot(values) and "3 not measured" in confidence_plot(values)
    assert ElementTree.fromstring(confidence_plot([-1.0])) is not None  # one value: no division by zero
    with pytest.raises(ValueError, match="nothing to plot"):
        confidence_plot([None])


# ----------------------------------------------------------------- the callback


class Snapshots(TrainerCallback):
    """Copies of the model after the given steps."""

    def __init__(self, steps):
        self.steps, self.states = steps, {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step in self.steps:
            self.states[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}


def test_evaluation_passes_match_perplexities_by_hand(tmp_path, tokenizer):
    rows = random_rows()
    trainer = plain_trainer(tmp_path, tokenizer, rows, max_steps=5)
    callback, snapshots = ConfidenceCallback(trainer, checkpoints=2, batch_size=3), Snapshots({2, 5})
    trainer.add_callback(callback)
    trainer.add_callback(snapshots)
    trainer.train()

    table = {row["id"]: row for row in load_confidence(tmp_path / "confidence.parquet")}
    assert sorted(table) == sorted(row["id"] for row in rows)
    for row in rows:
        assert table[row["id"]]["checkpoints"] == [2, 5]
        expected = []
        for step in (2, 5):
            model = tiny_model()
            model.load_state_dict(snapshots.states[step])
            perplexity, tokens = perplexity_by_hand(model, row)
            expected.append(perplexity)
            assert table[row["id"]]["tokens"] == tokens
        assert table[row["id"]]["perplexity"] == pytest.approx(expected, rel=1e-4)
        assert table[row["id"]]["confidence"] == pytest.approx(-np.mean(expected), rel=1e-4)


def test_recording_does_not_disturb_training(tmp_path, tokenizer):
    rows = random_rows()
    states = []
    for options in (None, {"checkpoints": 2}, {"online": True}):
        trainer = plain_trainer(tmp_path, tokenizer, rows, num_train_epochs=2)
        if options:
            trainer.add_callback(ConfidenceCallback(trainer, **options))
        trainer.train()
        states.append(trainer.model.state_dict())
    for other in states[1:]:
        assert all(torch.equal(other[name], value) for name, value in states[0].items())


def test_online_uses_the_training_passes_alone(tmp_path, tokenizer):
    rows = random_rows() + [random_rows()[0] | {"id": "twin"}]  # the same content under another id
    trainer = plain_trainer(tmp_path, tokenizer, rows, num_train_epochs=2, learning_rate=0.0)
    callback = ConfidenceCallback(trainer, online=True)
    trainer.add_callback(callback)
    calls = []
    trainer.model.base_model.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()

    assert len(calls) == 2 * math.ceil(len(rows) / 4)
    table = {row["id"]: row for row in callback.table}
    for row in rows:  # with a learning rate of 0 the model stays what it was
        expected, _ = perplexity_by_hand(tiny_model(), row)
        assert table[row["id"]]["checkpoints"] == [1, 2]
        assert table[row["id"]]["perplexity"] == pytest.approx([expected] * 2, rel=1e-4)


@pytest.mark.parametrize("online", [True, False])
def test_padding_free_batches(tmp_path, tokenizer, online):
    rows = random_rows(2)
    tables = []
    for padding_free in (False, True):
        trainer = plain_trainer(
            tmp_path, tokenizer, rows, max_steps=3, learning_rate=0.0, padding_free=padding_free, max_length=None
        )
        callback = ConfidenceCallback(trainer, checkpoints=1, online=online)
        trainer.add_callback(callback)
        trainer.train()
        tables.append(callback.table)
    for one, other in zip(*tables, strict=True):
        assert one["id"] == other["id"] and one["tokens"] == other["tokens"]
        assert one["confidence"] == pytest.approx(other["confidence"], rel=1e-4)


@pytest.mark.parametrize("options", [{"checkpoints": 3}, {"online": True}])
def test_a_resumed_run_keeps_what_it_had_recorded(tmp_path, tokenizer, options):
    changes = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 4}

    def run(resume=None):
        trainer = plain_trainer(tmp_path, tokenizer, random_rows(), **changes)
        callback = ConfidenceCallback(trainer, **options)
        trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume)
        return callback.table.to_list()

    whole = run()
    assert run(str(tmp_path / "checkpoint-4")) == whole  # 3 steps per epoch
    (tmp_path / "checkpoint-4" / "confidence-0-of-1.parquet").unlink()
    with pytest.raises(ValueError, match="holds no recorded confidence"):
        run(str(tmp_path / "checkpoint-4"))


def test_quantized_lora_trains_on_after_an_evaluation_pass(tmp_path, tokenizer):
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    tiny_model().save_pretrained(tmp_path / "model")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    losses = []
    for checkpoints in (None, 4):
        trainer = plain_trainer(
            tmp_path,
            tokenizer,
            random_rows(),
            model=Qwen2ForCausalLM.from_pretrained(tmp_path / "model", quantization_config=quantization),
            peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
            max_steps=4,
        )
        if checkpoints:
            callback = ConfidenceCallback(trainer, checkpoints=checkpoints)
            trainer.add_callback(callback)
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert all(row["checkpoints"] == [1, 2, 3, 4] for row in callback.table)


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({"packing": True, "max_length": 32}, {}, "packing=True"),
        ({}, {"checkpoints": 0}, "checkpoints=0"),
        ({}, {"id_column": "key"}, "no column 'key'"),
    ],
)
def test_callback_refuses(tmp_path, tokenizer, change, options, message):
    trainer = plain_trainer(tmp_path, tokenizer, random_rows(), **change)
    with pytest.raises(ValueError, match=message):
        ConfidenceCallback(trainer, **options)


def test_more_checkpoints_than_steps(tmp_path, tokenizer):
    trainer = plain_trainer(tmp_path, tokenizer, random_rows(), max_steps=2)
    trainer.add_callback(ConfidenceCallback(trainer, checkpoints=3))
    with pytest.raises(ValueError, match="checkpoints=3 is more than the run's 2 steps"):
        trainer.train()


def test_a_collator_that_changes_rows_is_reported(tmp_path, tokenizer):
    trainer = plain_trainer(tmp_path, tokenizer, random_rows(), max_steps=1)
    inner = trainer.data_collator

    def collate(examples):
        return inner([{**example, "input_ids": [2] * len(example["input_ids"])} for example in examples])

    trainer.data_collator = collate
    trainer.add_callback(ConfidenceCallback(trainer, online=True))
    with pytest.raises(ValueError, match="not recognized"):
        trainer.train()


# ----------------------------------------------------------------- the reference run


def instruction_rows(count=8):
    return Dataset.from_list(
        [
            {"id": f"i{i}", "prompt": f"What is {i} plus one?", "completion": f"It is {i + 1}.", "source": "t"}
            for i in range(count)
        ]
    )


def test_reference_run_and_its_checkpoints(tmp_path):
    rows = instruction_rows()
    model = build_tiny_distiller(tmp_path / "tiny", rows["completion"])
    options = {"epochs": 2, "batch_size": 4, "max_length": 64, "learning_rate": 1e-3, "disable_tqdm": True}
    table = record_confidence(
        rows, model, tmp_path / "c.parquet", checkpoints=2, run_directory=tmp_path / "run", **options
    )
    assert load_confidence(tmp_path / "c.parquet").to_list() == table.to_list()
    assert [row["checkpoints"] for row in table] == [[2, 4]] * 8
    assert all(row["perplexity"][1] < row["perplexity"][0] for row in table)  # it learns

    # The run kept its last checkpoint; scoring that gives the values of the last pass.
    last = tmp_path / "run" / "checkpoint-4"
    scored = score_checkpoints(rows, [last], tmp_path / "s.parquet", max_length=64, disable_tqdm=True)
    for one, other in zip(table, scored, strict=True):
        assert one["perplexity"][1] == pytest.approx(other["perplexity"][0], rel=1e-4)
    # A finished run is not trained again.
    again = record_confidence(
        rows, model, tmp_path / "c2.parquet", checkpoints=2, run_directory=tmp_path / "run", **options
    )
    assert again.to_list() == table.to_list()
    # Nor does a run of other rows, of another model or of other settings go on from its checkpoints.
    other_rows = rows.map(lambda row: {"id": row["id"] + "x"})
    for data, reference, change, named in (
        (other_rows, model, {}, "rows"),
        (rows, tmp_path / "other", {}, "reference model"),
        (rows, model, {"epochs": 4, "checkpoints": 3}, "measurements, epochs"),
    ):
        with pytest.raises(ValueError, match=f"with another value of: {named}. Delete it to begin anew"):
            record_confidence(
                data,
                reference,
                tmp_path / "c3.parquet",
                **{"checkpoints": 2, "run_directory": tmp_path / "run"} | options | change,
            )
    assert not (tmp_path / "c3.parquet").exists()


def test_reference_run_with_lora_online(tmp_path):
    rows = instruction_rows()
    model = build_tiny_distiller(tmp_path / "tiny", rows["completion"])
    table = record_confidence(
        rows, model, tmp_path / "c.parquet", online=True, epochs=1, lora_rank=2, max_length=64, disable_tqdm=True
    )
    assert [row["checkpoints"] for row in table] == [[1]] * 8


def test_reference_run_needs_ids_and_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="no `id` column"):
        record_confidence(Dataset.from_dict({"prompt": ["a"]}), "model", tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="No checkpoint is named"):
        score_checkpoints(instruction_rows(), [], tmp_path / "c.parquet")
