import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import tracemalloc
from itertools import product
from unittest.mock import Mock

import loopback_hub
import pytest
from datasets import get_dataset_config_names, load_dataset

from hf_lmmixup import bundled, mixture, published, rewards
from hf_lmmixup.mixture_rows import FORMS, GRPO, RAW, SFT
from hf_lmmixup.prompts import (
    SYSTEM_PROMPT,
    TASK_INSTRUCTIONS,
    answer_matches,
    format_completion,
    linearize,
    parse_completion,
)
from hf_lmmixup.records import TaskType, row_id
from hf_lmmixup.row_stream import RowError


KINDS = [kind.value for kind in TaskType]
CONFIGS = {"sft": SFT, "grpo": GRPO, "raw": RAW, **dict.fromkeys(KINDS, SFT)}
ROWS = 30
INSTRUCTIONS = {kind: f"You are given noisy {kind} texts.\nWrite one clean text." for kind in KINDS}
SPELLINGS = {"qa": "qa_mixup", "mcq": "mcq_mixup", "tfq": "tfq_mixup", "cs": "cs_mixup", "para": "para_mixup"}

mixture.register()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Each test has an empty cache, and a current directory full of files that are not MIXTURE."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    (elsewhere / "train.json").write_text("not json")
    monkeypatch.chdir(elsewhere)


def clusters(kind, split):
    """Thirty clusters of one kind, numbered so that all are distinct."""
    base = bundled.mini_clusters(kind, split)
    picked = [base[i % len(base)] for i in range(ROWS)]
    return [
        {**c, "sources": [f"{w['text']} ({i})" for w in c["weak"]], "target": f"{c['target']} ({i})"}
        for i, c in enumerate(picked)
    ]


def sft_file_row(cluster, number):
    return {
        "id": number,
        "input": linearize(cluster["sources"]),
        "output": cluster["target"],
        "cot": cluster["reasoning"],
        "instruction": INSTRUCTIONS[cluster["task_type"]],
        "source": f"article {number}",
    }


def grpo_file_row(cluster):
    return {
        "input": f"{INSTRUCTIONS[cluster['task_type']]}\n{linearize(cluster['sources'])}",
        "output": cluster["target"],
        "task_type": SPELLINGS[cluster["task_type"]],
    }


@pytest.fixture
def per_task(tmp_path):
    """The first published layout: one SFT file a task type and split, and GRPO files."""
    root = tmp_path / "per_task"
    for kind, split in product(KINDS, mixture.SPLITS):
        file = root / "data_sft" / kind / f"merged_{split}_{kind}_noisy.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([sft_file_row(c, i) for i, c in enumerate(clusters(kind, split))], indent=1))
    write_grpo(root / "data_grpo" / "llm_mixup")
    return root


@pytest.fixture
def cold_start(tmp_path):
    """The second one: all task types in the cold-start file, beside GRPO files."""
    root = tmp_path / "cold_start"
    (root / "data_sft").mkdir(parents=True)
    rows = [sft_file_row(c, i) for kind in KINDS for i, c in enumerate(clusters(kind, "train"))]
    (root / "data_sft" / "merged_all_30.json").write_text(json.dumps(rows))
    write_grpo(root / "data_grpo")
    return root


def write_grpo(folder):
    folder.mkdir(parents=True)
    for split in mixture.SPLITS:
        rows = [grpo_file_row(c) for kind in KINDS for c in clusters(kind, split)]
        random.Random(0).shuffle(rows)
        (folder / f"{split}.json").write_text(json.dumps(rows))


def test_every_config_split_and_mode():
    """The whole table: 8 configurations x 2 splits x streamed or not, the same rows of the same type."""
    sizes = {"train": 36, "test": 9}
    for config, split in product(CONFIGS, mixture.SPLITS):
        whole = load_dataset("mixture", config, split=split)
        streamed = load_dataset("mixture", config, split=split, streaming=True)
        assert whole.features == streamed.features == CONFIGS[config], config
        assert list(whole) == list(streamed), (config, split)
        assert len(whole) == sizes[split] * (1 if config in KINDS else 5), (config, split)
        assert len(set(whole["id"])) == len(whole)
        if config in KINDS:
            assert set(whole["task_type"]) == {config}
    assert get_dataset_config_names("mixture") == list(CONFIGS)
    assert load_dataset("mixture").keys() == {"train", "test"}
    assert load_dataset("mixture", split="test")[0] == load_dataset("mixture", "sft", split="test")[0]


def test_rows_are_what_trl_and_the_rewards_expect():
    for row in load_dataset("mixture", split="train+test"):
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        [message] = row["completion"]
        distillation = parse_completion(message["content"])
        assert message["role"] == "assistant" and answer_matches(distillation.answer, row["task_type"])
        assert row["source"] == "mini" and row["topic"]
    grpo = load_dataset("mixture", "grpo", split="train+test")
    assert not {"prompts", "completion", "completions", "completion_ids"} & set(grpo.column_names)
    for row in grpo:
        assert answer_matches(row["reference"], row["task_type"]) and 2 <= len(row["sources"]) <= 8
        assert row["prompt"][0]["content"] == SYSTEM_PROMPT
        assert row["prompt"][1]["content"].startswith(linearize(row["sources"]))
        assert row["reference"] not in row["prompt"][1]["content"]
    first = load_dataset("mixture", "raw", split="train")[:5]
    assert first["task_type"] == KINDS  # types take turns
    assert all(TASK_INSTRUCTIONS[TaskType(k)] == i for k, i in zip(KINDS, first["instruction"], strict=True))


def test_mini_holds_what_it_promises():
    """45 topics, 9 held out, the same for all types; 2 to 8 weak texts; half of them or more written by hand."""
    rows = bundled.mini_clusters()
    assert {kind: sum(row["task_type"] == kind for row in rows) for kind in KINDS} == dict.fromkeys(KINDS, 45)
    held_out = [{r["topic"] for r in rows if r["task_type"] == kind and r["split"] == "test"} for kind in KINDS]
    assert all(topics == bundled.held_out_topics() for topics in held_out) and len(held_out[0]) == 9
    sizes = [len(row["weak"]) for row in rows]
    assert set(sizes) == set(range(2, 9)) and sorted(sizes)[len(sizes) // 2] in (4, 5)
    by_hand = sum(len(row["weak"]) for row in bundled.read_mini())
    assert by_hand / sum(sizes) > 0.5
    assert all(0 <= weak["score"] <= 3 < row["score"] for row in rows for weak in row["weak"])
    assert all(answer_matches(row["target"], row["task_type"]) for row in rows)
    assert len({row["id"] for row in rows}) == len(rows) == 225


def test_rated_texts_keep_held_out_topics_apart():
    train, test, both = (bundled.rated_texts(split) for split in ("train", "test", None))
    assert {row.topic for row in train} & {row.topic for row in test} == set()
    assert len(train) + len(test) == len(both) == len({(row.task_type, row.text) for row in both})
    assert {row.score for row in both} == {0, 1, 2, 3, 4, 5}
    with pytest.raises(ValueError, match="Unknown split 'valid'"):
        bundled.rated_texts("valid")


@pytest.mark.parametrize("layout", ["per_task", "cold_start"])
def test_published_layouts_load_to_the_same_features(layout, request):
    root = str(request.getfixturevalue(layout))
    for config, features in CONFIGS.items():
        loaded = load_dataset("mixture", config, data_dir=root)
        assert all(part.features == features for part in loaded.values()), config
        streamed = load_dataset("mixture", config, data_dir=root, streaming=True)
        assert {name: list(part) for name, part in loaded.items()} == {n: list(p) for n, p in streamed.items()}
        if config in KINDS:
            assert set(loaded["train"]["task_type"]) == {config} and len(loaded["train"]) == ROWS
    assert len(load_dataset("mixture", "sft", data_dir=root, split="train")) == 5 * ROWS
    assert len(load_dataset("mixture", "grpo", data_dir=root, split="test")) == 5 * ROWS
    raw = load_dataset("mixture", "raw", data_dir=root, split="train")
    assert len(raw) == 10 * ROWS
    assert set(raw["instruction"]) == {*INSTRUCTIONS.values(), None}
    assert set(raw["task_type"]) == {*SPELLINGS.values(), None}


def test_published_rows_say_the_same_in_both_forms(per_task):
    """The fixture's SFT and GRPO files hold the same clusters, so the prompts must be equal byte for byte."""
    sft = load_dataset("mixture", "sft", data_dir=str(per_task), split="train")
    grpo = load_dataset("mixture", "grpo", data_dir=str(per_task), split="train")
    by_id = {row["id"]: row for row in grpo}
    expected = {row_id(linearize(c["sources"]), c["target"]): c for kind in KINDS for c in clusters(kind, "train")}
    assert set(sft["id"]) == set(by_id) == set(expected)
    for row in sft:
        twin, cluster = by_id[row["id"]], expected[row["id"]]
        assert row["prompt"] == twin["prompt"] and row["task_type"] == twin["task_type"] == cluster["task_type"]
        assert twin["sources"] == cluster["sources"] and twin["reference"] == cluster["target"]
        assert "noisy" not in row["prompt"][1]["content"]
        distillation = parse_completion(row["completion"][0]["content"])
        assert (distillation.reasoning, distillation.answer) == (cluster["reasoning"], cluster["target"])
        assert row["source"].startswith("article ") and twin["source"] is None


def test_cold_start_file_stands_for_the_train_files(per_task, cold_start):
    shutil.copy(cold_start / "data_sft" / "merged_all_30.json", per_task / "data_sft")
    assert len(load_dataset("mixture", data_dir=str(per_task), split="train")) == 5 * ROWS
    assert len(load_dataset("mixture", "qa", data_dir=str(per_task), split="test")) == ROWS


def test_data_files_name_single_files(per_task):
    qa = [str(per_task / "data_sft/qa" / f"merged_{split}_qa_noisy.json") for split in mixture.SPLITS]
    loaded = load_dataset("mixture", "sft", data_files={"train": qa[0], "validation": qa[1]})
    assert {name: len(part) for name, part in loaded.items()} == {"train": ROWS, "validation": ROWS}
    renamed = per_task / "mine.json"
    shutil.copy(qa[0], renamed)
    assert load_dataset("mixture", "qa", data_files=str(renamed))["train"][:] == loaded["train"][:]


def test_cache_is_keyed_by_content(per_task, tmp_path):
    def load(folder):
        return load_dataset("mixture", "qa", data_dir=str(folder), split="train")

    first = load(per_task)
    path = per_task / "data_sft" / "qa" / "merged_train_qa_noisy.json"
    os.utime(path, (1, 1))
    shutil.copytree(per_task, tmp_path / "moved")
    for folder in (per_task, tmp_path / "moved"):  # touched, moved: the same content, the same cache
        assert load(folder).cache_files == first.cache_files
    stamp = path.stat()
    path.write_text(path.read_text().replace("(7)", "(8)"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    changed = load(per_task)  # same size, same times, other content
    assert changed.cache_files != first.cache_files
    assert [row["id"] for row in changed] != [row["id"] for row in first]


def test_building_twice_gives_the_same_bytes(tmp_path):
    for config in CONFIGS:
        for cache in ("one", "two"):
            part = load_dataset("mixture", config, split="train", cache_dir=str(tmp_path / cache))
            part.to_parquet(tmp_path / f"{cache}-{config}.parquet")
        one, two = ((tmp_path / f"{cache}-{config}.parquet").read_bytes() for cache in ("one", "two"))
        assert one == two


def test_num_proc_gives_the_same_rows(per_task):
    for options in ({}, {"data_dir": str(per_task)}):
        one = load_dataset("mixture", "sft", split="train", **options)
        two = load_dataset("mixture", "sft", split="train", num_proc=2, download_mode="force_redownload", **options)
        assert one[:] == two[:]
    assert load_dataset("mixture", split="train", streaming=True).num_shards == mixture.BUNDLED_SHARDS


def test_a_subprocess_that_imports_the_package(tmp_path):
    script = """
        import os, sys
        import hf_lmmixup.mixture
        hf_lmmixup.mixture.register()
        from datasets import load_dataset
        print(len(load_dataset("mixture", "grpo", split="test")), "torch" in sys.modules)
    """
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "45 False\n"), done.stderr


ROW = {"id": 1, "instruction": "Merge.", "input": "Q: a\nA: b", "output": "Q: c\nA: d", "cot": "e", "source": "x"}


@pytest.mark.parametrize(
    "content, message",
    [
        # not JSON at all
        ("hello", "after row 0: not valid JSON"),
        # cut off in the middle
        (json.dumps([ROW, ROW])[:-30], "after row 2: not valid JSON"),
        # an empty file
        ("", "after row 0: not valid JSON"),
        # an object where the array should be
        (json.dumps(ROW), "row 1: expected one array of objects"),
        # lines, not an array
        (f"{json.dumps(ROW)}\n{json.dumps(ROW)}", "row 1: expected one array of objects"),
        # a scalar in the array
        (json.dumps([ROW, 5]), "row 2: expected an object, found 5"),
        # a list in the array
        (json.dumps([ROW, [ROW]]), "row 2: expected one array of objects"),
        # a field is missing
        (json.dumps([ROW, {k: v for k, v in ROW.items() if k != "output"}]), "row 2: field 'output' is missing"),
        # a field is no text
        (json.dumps([{**ROW, "input": ["Q: a"]}]), "row 1: field 'input' is missing or no text"),
        # a field is empty
        (json.dumps([ROW, ROW, {**ROW, "input": " "}]), "row 3: field 'input' is empty"),
        # a task type that is none
        (json.dumps([{**ROW, "task_type": "poem_mixup"}]), "row 1: field 'task_type': Unknown task type 'poem'"),
        # nested 10,000 levels deep in a column that nobody reads
        (f'[{{"x": {"[" * 10_000}{"]" * 10_000}}}]', "row 1: field 'x' is nested over 64 levels deep"),
        # a text of two million characters
        (json.dumps([{**ROW, "cot": "e" * 2_000_000}]), "row 1: field 'cot' has 2000000 characters"),
        # no UTF-8
        (b'[{"id": "\xff\xfe"}]', "after row 1: not valid JSON"),
    ],
)
def test_a_file_that_is_not_mixture(content, message, tmp_path):
    """The message names file, row and field, streamed or not."""
    folder = tmp_path / "copy"
    folder.mkdir()
    file = folder / "merged_train_qa_noisy.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for streaming in (False, True):
        with pytest.raises(RowError, match="merged_train_qa_noisy.json: ") as caught:
            list(load_dataset("mixture", "sft", data_dir=str(folder), split="train", streaming=streaming))
        assert message in str(caught.value)


def test_memory_does_not_grow_with_the_file(tmp_path):
    """A file of 16 MB: neither the array nor its text is ever held whole; benchmarks/mixture_load.py does 1 GB."""
    file = tmp_path / "copy" / "train.json"
    file.parent.mkdir()
    rows = [{**ROW, "task_type": "qa", "input": f"Q: {number}\nA: {'word ' * 16_000}"} for number in range(200)]
    file.write_text(json.dumps(rows))
    del rows
    part = load_dataset("mixture", "grpo", data_dir=str(file.parent), split="train", streaming=True)
    tracemalloc.start()
    try:
        assert sum(1 for _ in part) == 200
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < file.stat().st_size / 4


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"name": "poem"}, ValueError, "BuilderConfig 'poem' not found. Available: "),
        ({"source": "web"}, ValueError, r"Unknown source 'web'. Expected one of \['bundled', 'hub'\]"),
        ({"source": "hub", "data_dir": "."}, ValueError, "name the data twice"),
        ({"data_dir": "missing"}, FileNotFoundError, "No file of MIXTURE in missing"),
        ({"data_dir": "other"}, FileNotFoundError, r"found \['README.md'\]"),
        ({"data_dir": "grpo_only"}, FileNotFoundError, "No file for the configuration 'sft' among"),
    ],
)
def test_what_cannot_be_loaded(options, error, message):
    os.makedirs("other")
    with open("other/README.md", "w") as readme:
        readme.write("hello")
    os.makedirs("grpo_only/data_grpo")
    with open("grpo_only/data_grpo/train.json", "w") as file:
        json.dump([grpo_file_row(clusters("qa", "train")[0])], file)
    with pytest.raises(error, match=message):
        load_dataset("mixture", **options)


def test_rows_without_reasoning_are_left_out_of_sft_and_counted(tmp_path, caplog):
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "merged_train_qa_noisy.json").write_text(json.dumps([ROW, {**ROW, "cot": None}, {**ROW, "cot": " "}]))
    assert len(load_dataset("mixture", "sft", data_dir=str(folder), split="train")) == 1
    assert "left out 2 rows without reasoning" in caplog.text
    assert load_dataset("mixture", "raw", data_dir=str(folder), split="train")["cot"][:] == ["e", None, " "]


@pytest.mark.parametrize(
    "text, kind, expected",
    [
        # labelled members start at their first label, blank line or not
        ("Q: a\nA: b\n\nQ: c\nA: d\nQ: e\nA: f", "qa", ["Q: a\nA: b", "Q: c\nA: d", "Q: e\nA: f"]),
        ("Statement: a\n\nAnswer: True\nStatement: b", "tfq", ["Statement: a\n\nAnswer: True", "Statement: b"]),
        # prose: blank lines part
        ("one.\ntwo.\n\n \nthree.", "para", ["one.\ntwo.", "three."]),
        # text without the label of its type is parted like prose
        ("no label\n\nat all", "qa", ["no label", "at all"]),
    ],
)
def test_split_sources(text, kind, expected):
    assert published.split_sources(text, TaskType(kind)) == expected


@pytest.mark.parametrize(
    "text, kind, known, expected",
    [
        ("Merge.\nQ: a", "qa", ["Merge."], "Q: a"),  # known
        ("Please merge.\nQ: a\nQ: b", "qa", [], "Q: a\nQ: b"),  # cut before the first label
        ("Q: a\nQ: b", "qa", [], "Q: a\nQ: b"),  # nothing in front
        ("Please merge.\nwords", "para", [], "Please merge.\nwords"),  # prose shows no border
    ],
)
def test_strip_instruction(text, kind, known, expected):
    assert published.strip_instruction(text, TaskType(kind), known) == expected


@pytest.mark.parametrize(
    "spelling, kind",
    [
        ("qa", "qa"),
        ("qa_mixup", "qa"),
        ("paragraph", "para"),
        ("para_mixup", "para"),
        (" MCQ ", "mcq"),
        ("tfq", "tfq"),
    ],
)
def test_spellings_become_one(spelling, kind):
    assert published.task_type_of(spelling) == TaskType(kind)


def test_registering_is_idempotent_and_guarded(monkeypatch):
    from datasets import load, packaged_modules

    before = load.PackagedDatasetModuleFactory.get_module
    assert mixture.register() and load.PackagedDatasetModuleFactory.get_module is before
    monkeypatch.delattr(packaged_modules, "_PACKAGED_DATASETS_MODULES")
    assert mixture.register() is False
    assert set(FORMS) == {"sft", "grpo", "raw"}


def test_the_published_repository(per_task, tmp_path):
    """`source="hub"` and its address load the same rows as a copy; streamed too; a repository that is gone says so."""
    script = """
        import sys
        import hf_lmmixup.mixture as mixture
        mixture.register()
        from datasets import load_dataset

        for form in ("sft", "grpo"):
            copy = load_dataset("mixture", form, split="train", data_dir=sys.argv[1])
            for options in ({"source": "hub"}, {"data_dir": "hf://datasets/dokiik/MIXTURE"}):
                hub = load_dataset("mixture", form, split="train", **options)
                assert hub[:] == copy[:] and hub.features == copy.features
            stream = load_dataset("mixture", form, split="train", source="hub", streaming=True)
            assert list(stream) == list(copy)
        try:
            load_dataset("mixture", data_dir="hf://datasets/nobody/MIXTURE")
        except FileNotFoundError as error:
            print(error)
    """
    with loopback_hub.serve(tmp_path / "hub") as hub:
        tree = {
            path.relative_to(per_task).as_posix(): hub.store.small_entry(path.read_bytes())
            for path in per_task.rglob("*.json")
        }
        hub.store.create("datasets/dokiik/MIXTURE", private=False, user="dokiik")
        hub.store.commit("datasets/dokiik/MIXTURE", "main", None, tree, "data", "dokiik")
        address = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        environment = {**os.environ, **address}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(per_task)],
            env=environment,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Cannot list hf://datasets/nobody/MIXTURE") and "Pass data_dir=FOLDER" in done.stdout
    assert any("/dokiik/MIXTURE/resolve/" in line for line in hub.requests), hub.requests


def test_the_hash_follows_sources_and_data_and_survives_without_sources(monkeypatch):
    before = mixture.builder_hash()
    assert before == mixture.builder_hash()
    rows = bundled.read_mini()
    with monkeypatch.context() as patch:
        patch.setattr(bundled, "read_mini", lambda: [{**rows[0], "score": 1}, *rows[1:]])
        assert mixture.builder_hash() != before
    with monkeypatch.context() as patch:
        patch.setattr(bundled, "redrawn", lambda: frozenset(["0" * 16]))
        assert mixture.builder_hash() != before
    with monkeypatch.context() as patch:
        patch.setattr(mixture, "VERSION", "9.9.9")
        assert mixture.builder_hash() != before
    monkeypatch.setattr("inspect.getsource", Mock(side_effect=OSError))
    assert mixture.builder_hash() != before


def test_rewards_prefer_the_targets(monkeypatch):
    """Targets: 1.0 on format and alignment, and above each of their weak variants on quality, with no exception.

    Quality pays by class, so that a target and a variant may earn the same; the score behind it is lower always.
    """
    monkeypatch.setenv("HF_LMMIXUP_DATASTORE", "bundled")
    clusters = bundled.mini_clusters()
    texts = [(row, text) for row in clusters for text in (row["target"], *(weak["text"] for weak in row["weak"]))]
    completions = [format_completion(row["reasoning"], text) for row, text in texts]
    columns = {"task_type": [row["task_type"] for row, _ in texts], "reference": [row["target"] for row, _ in texts]}
    told = {}
    pays = rewards.quality_reward(completions, **columns, log_extra=told.__setitem__)
    judged = zip(texts, pays, told["expected_score"], strict=True)
    found = {(row["id"], text): (pay, score) for (row, text), pay, score in judged}

    targets = [place for place, (row, text) in enumerate(texts) if text == row["target"]]
    assert len(targets) == len(clusters) == 225
    answers = [completions[place] for place in targets]
    own = {name: [values[place] for place in targets] for name, values in columns.items()}
    assert set(rewards.format_reward(answers, **own)) == {1.0}
    assert set(rewards.alignment_reward(answers, **own)) == {1.0}

    for row in clusters:
        pay, score = found[row["id"], row["target"]]
        for weak in row["weak"]:
            weak_pay, weak_score = found[row["id"], weak["text"]]
            if weak_score is None:  # a guard stopped it: a list of keywords is no answer
                assert weak_pay == 0.0 < pay, weak
            else:
                assert weak_score < score and weak_pay <= pay, (row["topic"], weak)


def test_corruptions_are_drawn_again_where_they_were_rejected():
    """The others stay as they are; kinds and counts too, but where no seed helps."""
    before = {row["id"]: row["weak"] for row in bundled.complete_clusters(frozenset())}
    after = {row["id"]: row["weak"] for row in bundled.mini_clusters()}
    changed = 0
    for identifier, old in before.items():
        new = after[identifier]
        assert len(old) == len(new)
        for one, two in zip(old, new, strict=True):
            changed += one != two
            assert row_id(identifier, two["text"]) not in bundled.redrawn()
            if row_id(identifier, one["text"]) not in bundled.redrawn() and one["flaw"] == two["flaw"]:
                assert one == two
    assert 0 < changed <= len(bundled.redrawn())
