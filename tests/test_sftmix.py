"""SFTMix against an independent float64 reference with explicit soft labels, and inside TRL's trainer."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import checkpointing
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from hf_lmmixup.sftmix.confidence import CONFIDENT, UNCONFIDENT, UNPAIRED
from hf_lmmixup.sftmix.mixed_loss import logit_transform, mixed_cross_entropy
from hf_lmmixup.sftmix.pair_stream import HALF, ROW, PairStream
from hf_lmmixup.sftmix.pairing import draw_mixture, mixed_positions, pair_order, pairs_in_batch
from hf_lmmixup.sftmix.sftmix_config import SFTMixConfig
from hf_lmmixup.sftmix.sftmix_trainer import SFTMixTrainer


VOCABULARY = 97
IGNORED = -100

# peft reads the old name of a switch that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


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


def tiny_model(seed=0, dtype=torch.float32, tie=True):
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tie,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config).to(dtype)


def random_rows(seed, count=8, longest=14):
    """Tokenized rows: a prompt without loss and a response; some responses have a gap, as several turns leave one."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        prompt, response = rng.integers(1, 5), rng.integers(1, longest)
        ids = rng.integers(2, VOCABULARY, prompt + response).tolist()
        labels = [IGNORED] * prompt + ids[prompt:]
        if response > 4:
            labels[prompt + 1] = IGNORED
        rows.append({"id": f"{number:016x}", "input_ids": ids, "labels": labels, "confidence": -float(rng.random())})
    return rows


def settings_of(tmp_path, **changes):
    values = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        **checkpointing(False),
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 11,
    }
    return values | changes


def mix_trainer(tmp_path, tokenizer, model, rows, **changes):
    return SFTMixTrainer(
        model=model,
        args=SFTMixConfig(**settings_of(tmp_path, dataset_kwargs={"skip_prepare_dataset": True}, **changes)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


# ----------------------------------------------------------------- the reference


def reference_loss(model, rows, pairs, mixture, weight, items):
    """Row by row, position by position, with the soft label of the paper written out over the whole vocabulary."""
    head = model.get_output_embeddings().weight
    states, predicting, ntp = [], [], torch.zeros((), dtype=torch.float64)
    for row in rows:
        hidden = model.base_model(torch.tensor([row["input_ids"]])).last_hidden_state[0]
        places = [t for t in range(len(row["labels"]) - 1) if row["labels"][t + 1] != IGNORED]
        for t in places:
            ntp = ntp - (head @ hidden[t]).log_softmax(0)[row["labels"][t + 1]]
        states.append(hidden)
        predicting.append(places)
    mixed = torch.zeros((), dtype=torch.float64)
    for (c, u), share in zip(pairs, mixture, strict=True):
        for n in range(min(len(predicting[c]), len(predicting[u]))):
            tc, tu = predicting[c][n], predicting[u][n]
            z = share * states[c][tc] + (1 - share) * states[u][tu]
            label = torch.zeros(VOCABULARY, dtype=torch.float64)
            label[rows[c]["labels"][tc + 1]] += share
            label[rows[u]["labels"][tu + 1]] += 1 - share
            mixed = mixed - (label * (head @ z).log_softmax(0)).sum()
    return ntp / items, mixed / items, (ntp + weight * mixed) / items


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name in found:
        scale = max(1.0, float(expected[name].abs().max()))
        assert float((found[name] - expected[name]).abs().max()) < tolerance * scale, name


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tie", [True, False])
def test_loss_and_gradients_equal_the_reference(tmp_path, tokenizer, seed, tie):
    rows = random_rows(seed, count=7 + seed)
    weight, alpha = 0.2 + seed / 10, 0.3 + seed / 4
    model = tiny_model(seed, torch.float64, tie)
    plain = copy.deepcopy(model)
    trainer = mix_trainer(
        tmp_path,
        tokenizer,
        model,
        rows,
        mixup_weight=weight,
        mixup_alpha=alpha,
        mixup_seed=seed,
        per_device_train_batch_size=6,
    )
    trainer.state.global_step = 3
    for batch in trainer.get_train_dataloader():
        numbers = batch[ROW].tolist()
        chosen = [rows[number] for number in numbers]
        ranked = sorted(range(len(rows)), key=lambda i: -rows[i]["confidence"])
        half = len(rows) // 2
        confident = [place for place, number in enumerate(numbers) if number in ranked[:half]]
        unconfident = [place for place, number in enumerate(numbers) if number in ranked[-half:]]
        pairs = list(zip(confident, unconfident, strict=False))
        mixture = [np.random.default_rng([seed, 3, numbers[c], numbers[u]]).beta(alpha, alpha) for c, u in pairs]
        items = 40.0

        trainer.model.train()
        loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(items))
        ntp, mixed, expected = reference_loss(plain, chosen, pairs, mixture, weight, items)

        assert (pairs or len(chosen) == 1) and abs(loss.item() - expected.item()) < 1e-6
        assert abs(trainer._metrics["train"]["ntp_loss"][-1] - ntp.item()) < 1e-6
        assert abs(trainer._metrics["train"]["mixup_loss"][-1] - mixed.item()) < 1e-6
        assert_same_gradients(gradients(model, loss), gradients(plain, expected), 1e-6)


# ----------------------------------------------------------------- the mixed cross-entropy alone


@settings(max_examples=40, deadline=None)
@given(
    positions=st.integers(1, 9),
    vocabulary=st.integers(2, 30),
    size=st.integers(1, 6),
    chunk=st.integers(1, 200),
    scale=st.sampled_from([1.0, 0.5]),
    softcap=st.sampled_from([None, 3.0]),
    with_bias=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_mixed_cross_entropy_equals_soft_labels(positions, vocabulary, size, chunk, scale, softcap, with_bias, seed):
    draw = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=draw).requires_grad_()

    hidden, weight, bias = leaf(positions, size), leaf(vocabulary, size), leaf(vocabulary) if with_bias else None
    targets = torch.randint(0, vocabulary, (positions, 2), generator=draw)
    share = torch.rand(positions, 1, dtype=torch.float64, generator=draw)
    leaves = [x for x in (hidden, weight, bias) if x is not None]

    logits = hidden @ weight.t() + (0 if bias is None else bias)
    logits = scale * logits
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    label = torch.zeros(positions, vocabulary, dtype=torch.float64)
    label.scatter_add_(1, targets, torch.cat([share, 1 - share], dim=1))
    expected = -(label * logits.log_softmax(1)).sum()
    wanted = torch.autograd.grad(2.5 * expected, leaves)

    found = mixed_cross_entropy(
        hidden,
        weight,
        bias,
        targets,
        torch.cat([share, 1 - share], dim=1),
        scale=scale,
        softcap=softcap,
        chunk_elements=chunk,
    )
    assert math.isclose(found.item(), expected.item(), rel_tol=1e-12, abs_tol=1e-12)
    for one, other in zip(torch.autograd.grad(2.5 * found, leaves), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_docstring_example_of_mixed_cross_entropy():
    hidden = torch.tensor([[2.0, 0.0, 1.0]])
    loss = mixed_cross_entropy(hidden, torch.eye(3), None, torch.tensor([[0, 2]]), torch.tensor([[0.75, 0.25]]))
    assert round(loss.item(), 4) == 0.6576


@pytest.mark.parametrize("share, target", [(1.0, 0), (0.0, 1)])
def test_limits_are_plain_cross_entropy(share, target):
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    targets = torch.randint(0, 7, (5, 2))
    shares = torch.tensor([[share, 1 - share]] * 5, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), targets[:, target], reduction="sum")
    found = mixed_cross_entropy(hidden, weight, None, targets, shares)
    assert math.isclose(found.item(), expected.item(), rel_tol=1e-12)


def test_gradient_is_taken_once_and_a_frozen_head_gets_none():
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4)
    loss = mixed_cross_entropy(hidden, weight, None, torch.zeros(3, 2, dtype=torch.long), torch.full((3, 2), 0.5))
    loss.backward(retain_graph=True)
    assert weight.grad is None and hidden.grad is not None
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


@pytest.mark.parametrize(
    "values, expected",
    [
        ({}, (1.0, None)),  # Qwen, Llama, Mistral
        ({"final_logit_softcapping": 30.0}, (1.0, 30.0)),  # Gemma 2
        ({"logit_scale": 0.0625}, (0.0625, None)),  # Cohere
        ({"logits_scaling": 8.0}, (0.125, None)),  # Granite divides
        ({"logits_scaling": 8.0, "model_type": "hyperclovax"}, (8.0, None)),  # multiplies
        ({"lm_head_multiplier": 0.5}, (0.5, None)),  # Falcon-H1
    ],
)
def test_logit_transform(values, expected):
    assert logit_transform(type("Config", (), values)()) == expected


# ----------------------------------------------------------------- pairs, shares, positions


@settings(max_examples=60, deadline=None)
@given(halves=st.lists(st.sampled_from([CONFIDENT, UNCONFIDENT, UNPAIRED]), max_size=40), seed=st.integers(0, 99))
def test_an_epoch_is_a_permutation_of_aligned_pairs(halves, seed):
    halves = np.array(halves, dtype=np.int8)
    order = pair_order(halves, np.random.default_rng(seed)).tolist()
    assert sorted(order) == list(range(len(halves)))  # no row lost, none twice
    pairs = min((halves == CONFIDENT).sum(), (halves == UNCONFIDENT).sum())
    units = [tuple(halves[order[i : i + 2]]) for i in range(0, len(order) - 1, 2)]
    assert units.count((CONFIDENT, UNCONFIDENT)) == pairs
    for size in (2, 4, 6):  # whatever the even batch size, the batches hold the same pairs
        found = []
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            found += [(batch[c], batch[u]) for c, u in pairs_in_batch(halves[batch])]
        if set(halves.tolist()) <= {CONFIDENT, UNCONFIDENT} and pairs * 2 == len(halves):
            assert found == [tuple(order[i : i + 2]) for i in range(0, len(order), 2)]
        assert len(found) >= pairs


def test_pairs_are_drawn_anew_each_epoch_and_from_the_seed():
    halves = np.array([CONFIDENT, UNCONFIDENT] * 20, dtype=np.int8)
    orders = [pair_order(halves, np.random.default_rng([seed, epoch])).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == pair_order(halves, np.random.default_rng([0, 0])).tolist()


def test_shares_follow_beta_and_depend_on_seed_step_and_rows():
    pairs = [(i, i + 1) for i in range(4000)]
    shares = draw_mixture(0.5, 7, 0, pairs)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)).
    assert abs(shares.mean() - 0.5) < 0.02 and abs(shares.var() - 1 / 8) < 0.01
    assert abs(draw_mixture(8.0, 7, 0, pairs).var() - 1 / 68) < 0.002
    assert draw_mixture(0.5, 7, 0, pairs[5:6])[0] == shares[5]  # whatever else is in the batch
    for other in (draw_mixture(0.5, 8, 0, pairs), draw_mixture(0.5, 7, 1, pairs)):
        assert (other != shares).mean() > 0.99


def test_positions_skip_what_has_no_loss_and_stop_at_the_shorter():
    # Row 0 answers at places 2, 3 and (after a gap) 5; row 1 at 1 and 2.
    labels = torch.tensor([[-100, -100, 12, 13, -100, 15], [-100, 21, 22, -100, -100, -100]])
    found = mixed_positions(labels, [(0, 1)], np.array([0.25]))
    assert found.confident.tolist() == [1, 2]  # the states before places 2 and 3
    assert found.unconfident.tolist() == [6, 7]
    assert found.targets.tolist() == [[12, 21], [13, 22]]
    assert found.shares.tolist() == [[0.25, 0.75]] * 2


def test_no_pairs_no_positions():
    found = mixed_positions(torch.tensor([[1, 2, 3]]), [], np.array([]))
    assert len(found.targets) == 0


# ----------------------------------------------------------------- inside the trainer


def trained(trainer):
    trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_weight_zero_is_sfttrainer_bit_for_bit(tmp_path, tokenizer):
    rows = random_rows(1, count=10)
    changes = {"max_steps": 4, "learning_rate": 1e-2, "gradient_accumulation_steps": 2}
    plain = SFTTrainer(
        model=tiny_model(),
        args=SFTConfig(**settings_of(tmp_path, **changes)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    ours = mix_trainer(tmp_path, tokenizer, tiny_model(), rows, mixup_weight=0.0, **changes)
    expected, found = trained(plain), trained(ours)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_accumulation_changes_nothing(tmp_path, tokenizer):
    rows = random_rows(2, count=16)
    results = []
    for size, steps in ((8, 1), (4, 2), (2, 4)):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trainer = mix_trainer(
            tmp_path,
            tokenizer,
            tiny_model(dtype=torch.float64),
            rows,
            max_steps=4,
            optim="sgd",
            learning_rate=0.5,
            mixup_weight=0.7,
            **changes,
        )
        results.append(trained(trainer))
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-8)


# Each line changes one hyper-parameter and must change the loss.
@pytest.mark.parametrize(
    "change",
    [
        {"mixup_weight": 0.3},
        {"mixup_alpha": 2.0},
        {"mixup_seed": 5},
        {"confidence_column": "other"},
        {"confidence_threshold": -0.2},
    ],
)
def test_every_hyper_parameter_reaches_the_loss(tmp_path, tokenizer, change):
    rows = [row | {"other": -row["confidence"] * (1 + i % 3)} for i, row in enumerate(random_rows(3))]

    def first_loss(**settings):
        trainer = mix_trainer(
            tmp_path, tokenizer, tiny_model(), rows, per_device_train_batch_size=8, max_steps=1, **settings
        )
        return trainer.train().training_loss

    base = {"mixup_weight": 0.2, "mixup_alpha": 0.5, "mixup_seed": 4, "confidence_column": "confidence"}
    assert first_loss(**base) == first_loss(**base)
    assert abs(first_loss(**base) - first_loss(**base | change)) > 1e-6


def test_data_seed_and_seed_stand_in_for_the_mixup_seed(tmp_path):
    assert SFTMixConfig(**settings_of(tmp_path)).seed_of_mixup == 11
    assert SFTMixConfig(**settings_of(tmp_path, data_seed=3)).seed_of_mixup == 3
    assert SFTMixConfig(**settings_of(tmp_path, data_seed=3, mixup_seed=0)).seed_of_mixup == 0


class Logs(TrainerCallback):
    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append(dict(logs))


def test_parts_are_logged_and_add_up(tmp_path, tokenizer):
    logs = Logs()
    trainer = mix_trainer(
        tmp_path,
        tokenizer,
        tiny_model(),
        random_rows(4, count=16),
        max_steps=3,
        gradient_accumulation_steps=2,
        logging_strategy="steps",
        logging_steps=1,
        mixup_weight=0.4,
    )
    trainer.add_callback(logs)
    trainer.train()
    steps = [row for row in logs.rows if "mixup_loss" in row]
    assert len(steps) == 3
    for row in steps:
        assert math.isclose(row["loss"], row["ntp_loss"] + 0.4 * row["mixup_loss"], rel_tol=1e-5)
        assert 0 < row["mixup_share"] <= 1


@pytest.mark.parametrize("counted", [True, False])
def test_parts_add_up_over_steps_of_different_sizes(tmp_path, tokenizer, counted):
    rows = random_rows(4, count=10)  # in steps of four and of one micro-batch
    changes = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "num_train_epochs": 2}
    trainer = mix_trainer(
        tmp_path, tokenizer, tiny_model(), rows, logging_strategy="steps", logging_steps=2, **changes
    )
    trainer.model_accepts_loss_kwargs = counted
    trainer.train()
    logged = [row for row in trainer.state.log_history if "mixup_loss" in row]
    assert len(logged) == 2
    for row in logged:
        assert math.isclose(row["loss"], row["ntp_loss"] + 0.2 * row["mixup_loss"], rel_tol=1e-5)


def test_evaluation_is_not_mixed(tmp_path, tokenizer):
    rows = random_rows(5)
    evaluation = Dataset.from_list(random_rows(6)).select_columns(["input_ids", "labels"])
    ours = mix_trainer(tmp_path, tokenizer, tiny_model(), rows)
    plain = SFTTrainer(
        model=tiny_model(),
        args=SFTConfig(**settings_of(tmp_path)),
        train_dataset=evaluation,
        processing_class=tokenizer,
    )
    assert ours.evaluate(evaluation)["eval_loss"] == plain.evaluate(evaluation)["eval_loss"]


def test_a_resumed_run_continues_the_same_pairs(tmp_path, tokenizer):
    rows = random_rows(7, count=12)
    changes = {
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_only_model": False,
        "learning_rate": 1e-2,
    }
    whole = trained(mix_trainer(tmp_path / "a", tokenizer, tiny_model(), rows, **changes))
    second = mix_trainer(tmp_path / "a", tokenizer, tiny_model(), rows, **changes)
    second.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))  # 3 steps per epoch: inside the second
    for name, value in second.model.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=1e-7)


def test_text_rows_lora_checkpointing_and_bfloat16(tmp_path, tokenizer):
    from peft import LoraConfig

    rows = [
        {"id": str(i), "prompt": f"w{i + 2} w3", "completion": " w4 w5 w6"[: 3 + 3 * (i % 3)], "confidence": -float(i)}
        for i in range(8)
    ]
    model = tiny_model()
    trainer = SFTMixTrainer(
        model=model,
        args=SFTMixConfig(**settings_of(tmp_path, bf16=True, **checkpointing(True), max_steps=3, learning_rate=1e-2)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    after = trained(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("lora_" in name for name in changed)
    # Completions of one to three tokens and an end-of-sequence token each; prompts carry no loss.
    assert trainer.train_dataset[0]["labels"].count(IGNORED) == 2


def test_gradient_checkpointing_changes_nothing(tmp_path, tokenizer):
    rows = random_rows(8)
    changes = {"max_steps": 2, "learning_rate": 1e-2, "mixup_weight": 0.5}
    one = trained(mix_trainer(tmp_path, tokenizer, tiny_model(), rows, **checkpointing(False), **changes))
    other = trained(mix_trainer(tmp_path, tokenizer, tiny_model(), rows, **checkpointing(True), **changes))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_quantized_lora(tmp_path, tokenizer):
    import bitsandbytes
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    tiny_model().save_pretrained(tmp_path / "model")
    model = Qwen2ForCausalLM.from_pretrained(
        tmp_path / "model",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
    )
    assert any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in model.modules())
    trainer = SFTMixTrainer(
        model=model,
        args=SFTMixConfig(**settings_of(tmp_path, max_steps=3, learning_rate=1e-2)),
        train_dataset=Dataset.from_list(random_rows(9)),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    history = trainer.train()
    assert math.isfinite(history.training_loss)


# ----------------------------------------------------------------- streams and mosaics


def stream_of(rows, **changes):
    return PairStream(rows, **({"column": "confidence", "threshold": -0.5, "seed": 0, "window": 16} | changes))


@settings(max_examples=40, deadline=None)
@given(
    confidences=st.lists(st.one_of(st.none(), st.floats(-1, 0)), max_size=70),
    window=st.integers(2, 20),
    epoch=st.integers(0, 2),
)
def test_a_stream_loses_no_row_and_keeps_pairs_whole(confidences, window, epoch):
    rows = [{"input_ids": [i], "labels": [i], "confidence": value} for i, value in enumerate(confidences)]
    stream = stream_of(rows, window=window)
    stream.set_epoch(epoch)
    found = list(stream)
    assert sorted(row["input_ids"][0] for row in found) == list(range(len(rows)))
    for row in found:
        value = confidences[row["input_ids"][0]]
        assert row[HALF] == (0 if value is None else 1 if value >= -0.5 else -1)
    units = [(found[i][HALF], found[i + 1][HALF]) for i in range(0, len(found) - 1, 2)]
    assert (-1, 1) not in units  # no pair starts at an odd place
    assert [row[ROW] for row in stream] == [row[ROW] for row in found]  # the same again


def test_a_stream_on_one_side_of_the_threshold_is_reported_once(caplog):
    rows = [{"input_ids": [i], "labels": [i], "confidence": -float(i)} for i in range(40)]
    assert list(stream_of(rows)) and not caplog.records
    stream = stream_of(rows, threshold=0.5)
    assert len(list(stream)) == len(list(stream)) == 40
    (record,) = caplog.records
    assert "No pair to mix in the first 16 rows" in record.message and "'confidence'" in record.message


def test_a_balanced_stream_is_paired_almost_wholly():
    rng = np.random.default_rng(0)
    rows = [{"input_ids": [i], "labels": [i], "confidence": float(-rng.random())} for i in range(1000)]
    stream = stream_of(rows, window=64)
    found = list(stream)
    pairs = sum((found[i][HALF], found[i + 1][HALF]) == (1, -1) for i in range(0, 1000, 2))
    sure = sum(row["confidence"] >= -0.5 for row in rows)
    assert pairs >= min(sure, 1000 - sure) - 32  # at most half a window waits until the end
    first = [row[ROW] for row in found]
    stream.set_epoch(1)
    assert [row[ROW] for row in stream] != first


def test_training_on_a_stream_equals_the_reference(tmp_path, tokenizer):
    rows = random_rows(12, count=8)
    model = tiny_model(0, torch.float64)
    plain = copy.deepcopy(model)
    trainer = SFTMixTrainer(
        model=model,
        args=SFTMixConfig(
            **settings_of(
                tmp_path,
                per_device_train_batch_size=8,
                max_steps=1,
                confidence_threshold=-0.5,
                dataset_kwargs={"skip_prepare_dataset": True},
            )
        ),
        train_dataset=Dataset.from_list(rows).to_iterable_dataset(),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    tokens = [[token for token in ids if token] for ids in batch["input_ids"].tolist()]
    chosen = [next(row for row in rows if row["input_ids"] == ids) for ids in tokens]
    sure = [row["confidence"] >= -0.5 for row in chosen]
    sides = [[place for place, value in enumerate(sure) if value is half] for half in (True, False)]
    pairs = list(zip(*sides, strict=False))
    numbers = batch[ROW].tolist()
    mixture = [np.random.default_rng([11, 0, numbers[c], numbers[u]]).beta(0.5, 0.5) for c, u in pairs]
    trainer.model.train()
    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(30.0))
    expected = reference_loss(plain, chosen, pairs, mixture, 0.2, 30.0)[2]
    assert pairs and abs(loss.item() - expected.item()) < 1e-6


def test_a_stream_needs_a_threshold_or_a_length(tmp_path, tokenizer):
    stream = Dataset.from_list(random_rows(0)).to_iterable_dataset()
    with pytest.raises(ValueError, match="Set confidence_threshold"):
        SFTMixTrainer(
            model=tiny_model(),
            args=SFTMixConfig(**settings_of(tmp_path, max_steps=1)),
            train_dataset=stream,
            processing_class=tokenizer,
        )


def test_mosaics_are_mixed_too(tmp_path, tokenizer):
    from hf_lmmixup.mosaic import mosaic
    from hf_lmmixup.mosaic_config import MosaicConfig

    rows = Dataset.from_list(
        [{"prompt": f"w{i + 2} w3", "completion": f"w{i + 4} w5", "confidence": -float(i)} for i in range(24)]
    )
    config = MosaicConfig(strategies={"primary": 1}, max_items=3, max_tokens=60, keep_apart="confidence")
    logs = Logs()
    trainer = SFTMixTrainer(
        model=tiny_model(),
        args=SFTMixConfig(
            **settings_of(tmp_path, num_train_epochs=2, logging_strategy="steps", logging_steps=1, max_length=100)
        ),
        train_dataset=mosaic(rows, tokenizer, config),
        processing_class=tokenizer,
        callbacks=[logs],
    )
    trainer.train()
    steps = [row for row in logs.rows if "mixup_share" in row]
    # Two epochs, each of another pass; most mosaics of one half find a partner in the other.
    assert len(steps) == 2 * math.ceil(len(trainer.train_dataset) / 4)
    assert np.mean([row["mixup_share"] for row in steps]) > 0.4


@pytest.mark.parametrize("threshold", [None, -1.0])
def test_mosaics_without_confidence_are_refused(tmp_path, tokenizer, threshold):
    from hf_lmmixup.mosaic import mosaic

    rows = Dataset.from_list([{"prompt": f"w{i + 2}", "completion": "w5"} for i in range(8)])
    with pytest.raises(ValueError, match="keep_apart='confidence'"):
        SFTMixTrainer(
            model=tiny_model(),
            args=SFTMixConfig(**settings_of(tmp_path, confidence_threshold=threshold)),
            train_dataset=mosaic(rows, tokenizer),
            processing_class=tokenizer,
        )


# ----------------------------------------------------------------- clear refusals


@pytest.mark.parametrize(
    "change, message",
    [
        ({"packing": True}, "packing=True joins the rows"),
        ({"padding_free": True, "max_length": None}, "padding_free=True joins the rows"),
        ({"per_device_train_batch_size": 3}, "even number"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
        ({"train_sampling_strategy": "group_by_length"}, "'group_by_length'"),
        ({"mixup_alpha": 0.0}, "mixup_alpha=0.0"),
        ({"mixup_weight": -0.1}, "mixup_weight=-0.1"),
        ({"mixup_weight": float("nan")}, "mixup_weight=nan"),
        ({"mixup_seed": -1}, "mixup_seed=-1"),
        ({"liger_kernel_config": {"fused_linear_cross_entropy": True}}, "Liger"),
    ],
)
def test_config_refuses(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        SFTMixConfig(**settings_of(tmp_path, **change))


def test_packing_is_allowed_without_mixing(tmp_path):
    assert SFTMixConfig(**settings_of(tmp_path, packing=True, mixup_weight=0)).packing


def test_trainer_refuses_missing_confidence(tmp_path, tokenizer):
    rows = random_rows(0)
    bare = [{name: row[name] for name in ("id", "input_ids", "labels")} for row in rows]
    with pytest.raises(ValueError, match="no column 'confidence'"):
        mix_trainer(tmp_path, tokenizer, tiny_model(), bare)
    unknown = [row | {"confidence": None if i else -1.0} for i, row in enumerate(rows)]
    with pytest.raises(ValueError, match="1 of 8 rows"):
        mix_trainer(tmp_path, tokenizer, tiny_model(), unknown)


def test_trainer_refuses_virtual_tokens_and_plain_configs(tmp_path, tokenizer):
    from peft import PromptTuningConfig

    rows = Dataset.from_list(random_rows(0))
    shared = {"model": tiny_model(), "processing_class": tokenizer}
    with pytest.raises(ValueError, match="SFTMixConfig as `args`"):
        SFTMixTrainer(**shared, args=SFTConfig(**settings_of(tmp_path)), train_dataset=rows)
    with pytest.raises(ValueError, match="virtual tokens"):
        SFTMixTrainer(
            **shared,
            args=SFTMixConfig(**settings_of(tmp_path)),
            train_dataset=rows,
            peft_config=PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
        )


def test_sharded_heads(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("hf_lmmixup.sftmix.sftmix_trainer.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="ZeRO-3"):
        mix_trainer(tmp_path, tokenizer, tiny_model(), random_rows(0))


@pytest.mark.parametrize("spread", ["cp_enabled", "sp_enabled"])
def test_rows_that_are_spread_over_processes(tmp_path, tokenizer, monkeypatch, spread):
    plain = {"cp_enabled": False, "sp_enabled": False, "sp_backend": None, "tp_size": 1}
    trainer = mix_trainer(tmp_path, tokenizer, tiny_model(), random_rows(0))
    monkeypatch.setattr(Accelerator, "parallelism_config", SimpleNamespace(**plain | {spread: True}))
    with pytest.raises(ValueError, match="context and sequence parallelism"):
        trainer._refuse_what_cannot_be_mixed()


def test_a_head_that_fsdp2_shards_by_itself(tmp_path, tokenizer):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    trainer = mix_trainer(tmp_path, tokenizer, tiny_model(tie=False), random_rows(0), mixup_weight=0.5)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    losses, gradients_of_head = [], []
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for sharded in (False, True):
            head = trainer.model.lm_head
            if sharded:
                mesh = init_device_mesh("cpu", (1,))
                head.weight = torch.nn.Parameter(distribute_tensor(head.weight.detach(), mesh, [Replicate()]))
            loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(10.0))
            loss.backward()
            gradient = head.weight.grad
            losses.append(loss.item())
            gradients_of_head.append(gradient.full_tensor() if sharded else gradient.clone())
    finally:
        torch.distributed.destroy_process_group()
    assert losses[0] == pytest.approx(losses[1])
    torch.testing.assert_close(*gradients_of_head)


def test_model_card_names_the_method(tmp_path, tokenizer):
    trainer = mix_trainer(tmp_path, tokenizer, tiny_model(), random_rows(0))
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "SFTMix" in card and "2410.05248" in card
