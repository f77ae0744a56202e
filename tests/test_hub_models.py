"""Distillers on a Hub on loopback: whole models, adapters and merged ones, loaded by the libraries that others use."""

import json
import shutil

import pytest
import yaml
from hub_client import Raised, client_of


EVALUATION = {
    "dataset_id": "cais/mmlu",
    "task_id": "mmlu",
    "value": 25.1,
    "metric": "accuracy",
    "name": "MMLU",
    "notes": "0-shot",
}
FACTS = {
    "name": "pile",
    "recipe": {"input": "bundled", "datastore": "bundled", "distiller": {"model": "tiny"}},
    "ledger": {"rows_in": 4, "kept": 0, "merged": 4, "dropped": {}, "distilled_rows": 2, "notes": []},
    "rows": {"in": 4, "out": 2, "original": 0, "distilled": 2},
    "held_out": {
        "untrained": {"prompts": 5, "format": 0.0, "alignment": None, "quality": None, "coverage": 0.0, "total": 0.0},
        "GRPO": {"prompts": 5, "format": 0.93333, "alignment": None, "quality": 0.2, "coverage": 0.1, "total": 0.3},
    },
    "histories": {"cold start": [{"step": 1, "loss": 3.0}], "GRPO": [{"step": 1, "reward": 0.1}]},
    "models": ["untrained", "cold start", "GRPO"],
    "evaluations": [EVALUATION],
}
MODEL_FILES = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]
NOT_TO_LEAVE = [
    "training_args.bin",
    "optimizer.pt",
    "rng_state.pth",
    "trainer_state.json",
    "pytorch_model.bin",
    ".env",
]


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with client_of(hub, tmp_path_factory.mktemp("client"), imports="torch transformers peft") as worker:
        yield worker


@pytest.fixture(scope="module")
def run(client, tmp_path_factory):
    """A run directory with a model and much that must not leave."""
    folder = tmp_path_factory.mktemp("models") / "run"
    client.call("write_model", folder / "distiller")
    for name in NOT_TO_LEAVE:
        (folder / "distiller" / name).write_text("private")
    (folder / "distiller" / "checkpoint-3").mkdir()
    (folder / "distiller" / "checkpoint-3" / "model.safetensors").write_text("private")
    (folder / "facts.json").write_text(json.dumps(FACTS))
    return folder


@pytest.fixture(scope="module")
def base(client, run):
    """The repository of the whole model."""
    client.call("push", "distiller", run, "tester/base")
    return "tester/base"


@pytest.fixture(scope="module")
def adapter(client, run, base):
    """A folder with an adapter on the published model."""
    folder = run.parent / "adapter"
    client.call("write_adapter", folder, base)
    return folder


def head_of(hub, key):
    return yaml.safe_load(hub.store.files(key)["README.md"].split(b"---\n")[1])


def test_a_whole_model_loads_by_its_id(hub, client, run, base):
    files = hub.store.files(f"models/{base}")
    plots = ["plots/held-out.svg", "plots/loss-cold-start.svg", "plots/rewards-grpo.svg"]
    assert sorted(files) == sorted([".eval_results/lmmixup.yaml", ".gitattributes", "README.md", *MODEL_FILES, *plots])
    assert client.call("weights", base) == client.call("weights", run / "distiller")
    assert client.call("push", "distiller", run, base)["commits"] == 0
    # the weights go through Xet and come back the same
    client.call("push", "distiller", run, "tester/by-xet", xet=True)
    assert client.call("weights", "tester/by-xet", xet=True) == client.call("weights", run / "distiller")


def test_the_card_has_results_in_both_forms_of_the_hub(hub, base):
    head = head_of(hub, f"models/{base}")
    assert (head["license"], head["library_name"], head["pipeline_tag"]) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    results = head["model-index"][0]["results"]
    values = {metric["type"]: metric["value"] for result in results for metric in result["metrics"]}
    assert values == {
        "format_reward": 0.9333,
        "quality_reward": 0.2,
        "coverage_reward": 0.1,
        "total_reward": 0.3,
        "accuracy": 25.1,
    }  # of the finished distiller; an abstaining reward is not 0
    entry = {"dataset": {"id": "cais/mmlu", "task_id": "mmlu"}, "value": 25.1, "notes": "0-shot"}
    assert yaml.safe_load(hub.store.files(f"models/{base}")[".eval_results/lmmixup.yaml"]) == [entry]


def test_the_code_of_the_card_runs(client, base):
    names = client.call("run_card", base, "model")
    assert names["model"] == "Qwen2ForCausalLM" and names["text"] == "str"


def test_an_adapter_loads_on_its_base(hub, client, adapter, base):
    pushed = client.call("push", "distiller", adapter, "tester/adapter")
    files = sorted(hub.store.files("models/tester/adapter"))
    assert files == [".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"]
    head = head_of(hub, "models/tester/adapter")
    assert (head["base_model"], head["base_model_relation"], head["library_name"]) == (base, "adapter", "peft")
    assert pushed["licenses"] == ["apache-2.0"]  # the license of the base's card
    assert client.call("run_card", "tester/adapter", "model")["model"] == "PeftModelForCausalLM"


def test_a_merged_adapter_is_a_whole_model(hub, client, adapter, base):
    client.call("push", "distiller", adapter, "tester/merged", merge_adapter=True)
    assert "adapter_config.json" not in hub.store.files("models/tester/merged")
    assert client.call("largest_difference", base, adapter, "tester/merged") < 1e-5
    assert client.call("push", "distiller", adapter, "tester/merged", merge_adapter=True)["commits"] == 0


def test_an_adapter_with_a_tokenizer_is_used_with_its_own(hub, client, run, adapter, tmp_path):
    """The chat template of a base model is often the adapter's alone."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(run / "distiller" / name, folder)
    client.call("push", "distiller", folder, "tester/with-tokenizer")
    card = hub.store.files("models/tester/with-tokenizer")["README.md"].decode()
    assert 'AutoTokenizer.from_pretrained("tester/with-tokenizer")' in card
    assert client.call("run_card", "tester/with-tokenizer", "model")["text"] == "str"


def test_what_an_earlier_push_left_of_another_kind_goes(hub, client, run, adapter, base):
    client.call("push", "distiller", run, "tester/turned")
    client.call("push", "distiller", adapter, "tester/turned")
    files = sorted(hub.store.files("models/tester/turned"))
    assert files == [".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"]
    client.call("push", "distiller", adapter, "tester/turned", merge_adapter=True)
    assert not [name for name in hub.store.files("models/tester/turned") if name.startswith("adapter")]
    assert client.call("largest_difference", base, adapter, "tester/turned") < 1e-5


def test_an_adapter_on_a_local_folder_needs_a_name_for_it(hub, client, run, base, tmp_path):
    client.call("write_adapter", tmp_path / "adapter", run / "distiller")
    with pytest.raises(Raised, match="base model is the local folder .* Push that first and name it"):
        client.call("push", "distiller", tmp_path / "adapter", "tester/local")
    client.call("push", "distiller", tmp_path / "adapter", "tester/local", base_model=base)
    files = hub.store.files("models/tester/local")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == base
    assert str(run).encode() not in b"".join(files.values())


def test_what_it_was_trained_on_is_in_the_card_and_its_license_counts(hub, client, adapter, base):
    for name, license in (("tester/open", "cc-by-4.0"), ("tester/closed", "cc-by-nd-4.0")):
        hub.store.create(f"datasets/{name}", private=False, user="tester")
        tree = {"README.md": hub.store.small_entry(f"---\nlicense: {license}\n---\n".encode())}
        hub.store.commit(f"datasets/{name}", "main", None, tree, "card", "tester")
    pushed = client.call("push", "distiller", adapter, "tester/told", datasets=["tester/open"])
    assert pushed["licenses"] == ["apache-2.0", "cc-by-4.0"]  # of the base's card and of the data
    head = head_of(hub, "models/tester/told")
    assert (head["datasets"], head["license"]) == (["tester/open"], "other")
    assert head["license_name"] == "apache-2.0-and-cc-by-4.0"
    with pytest.raises(Raised, match="tester/closed is licensed cc-by-nd-4.0, which allows no adaptations"):
        client.call("push", "distiller", adapter, "tester/told", datasets=["tester/closed"])
    with pytest.raises(Raised, match="'rows.jsonl' is no dataset on the Hub"):
        client.call("push", "distiller", adapter, "tester/told", datasets=["rows.jsonl"])


def test_a_license_that_is_none_of_the_hubs_keeps_its_name(hub, client, adapter, base):
    hub.store.create("datasets/tester/named", private=False, user="tester")
    card = b"---\nlicense: other\nlicense_name: qwen-research\nlicense_link: LICENSE\n---\n"
    tree = {"README.md": hub.store.small_entry(card)}
    hub.store.commit("datasets/tester/named", "main", None, tree, "card", "tester")
    client.call("push", "distiller", adapter, "tester/passed-on", datasets=["tester/named"])
    head = head_of(hub, "models/tester/passed-on")
    assert (head["license"], head["license_name"]) == ("other", "qwen-research")
    card = hub.store.files("models/tester/passed-on")["README.md"].decode()
    assert "License: `qwen-research`, inherited" in card and "was not stated" not in card


def test_a_folder_of_links_to_weights_is_no_model(client, run, tmp_path):
    for name in MODEL_FILES:
        (tmp_path / name).symlink_to(run / "distiller" / name)
    with pytest.raises(Raised, match="holds no weights"):
        client.call("prepare", "distiller", tmp_path, "tester/links")
