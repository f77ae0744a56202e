import email
import filecmp
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, get_dataset_config_names, load_dataset
from safetensors.numpy import load_file

from hf_lmmixup import bundled, mixture, shipped_vectors
from hf_lmmixup.articles import read_articles, segment
from hf_lmmixup.corruption import names
from hf_lmmixup.mixture_repository import Configuration, Origin, escape, license_of, write_repository
from hf_lmmixup.mixture_rows import GRPO, RAW, SFT


ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "dataset_scripts"
sys.path.insert(0, str(SCRIPTS))

import docstrings  # noqa: E402  (scripts are no package)
import mixture as script  # noqa: E402


mixture.register()

FORMS = {"sft": SFT, "grpo": GRPO, "raw": RAW}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def articles(tmp_path):
    """Twenty articles of two segments, with facts of their own."""
    rows = []
    for number in range(20):
        parts = [
            f"Mill {number}{part} was built by Anna Orb{number}{part} in {1800 + 2 * number + part}. She took oak "
            f"because it resists water, and paid {70 + number} masons for part {part}. It ground rye until "
            f"{1900 + number}, when river Kolm{number} was moved."
            for part in (1, 2)
        ]
        row = {"title": f"Mill {number}", "source": "notes", "license": "CC0-1.0" if number % 2 else "CC-BY-4.0"}
        rows.append({**row, "text": "\n\n".join(parts)})
    path = tmp_path / "articles.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_repository_of_the_mini_is_the_mini():
    """Without the package's builder, from the committed files: every configuration and split has the same rows."""
    repository = str(SCRIPTS / "mixture")
    assert get_dataset_config_names(repository) == get_dataset_config_names("mixture")
    for config in get_dataset_config_names(repository):
        for split in ("train", "test"):
            committed, built = (load_dataset(name, config, split=split) for name in (repository, "mixture"))
            assert committed.features == built.features and committed[:] == built[:], (config, split)
    assert load_dataset(repository)["train"][0] == load_dataset("mixture")["train"][0]
    streamed = load_dataset(repository, "grpo", split="test", streaming=True)
    assert len(list(streamed)) == 45


def test_the_repository_of_the_mini_needs_no_package(tmp_path):
    """In a program that cannot import the package, from the checkout, by the path that the card names."""
    program = """
        import sys
        sys.modules["hf_lmmixup"] = None
        from datasets import load_dataset
        print({split: len(part) for split, part in load_dataset("dataset_scripts/mixture").items()})
        print(next(iter(load_dataset("dataset_scripts/mixture", "mcq", split="test", streaming=True)))["task_type"])
    """
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "{'train': 180, 'test': 45}\nmcq\n"), done.stderr


def test_the_repository_is_what_the_script_writes(tmp_path, capsys):
    """Card byte for byte, and two builds byte for byte; Parquet's own bytes also depend on the version of pyarrow."""
    for folder in ("one", "two"):
        assert script.main(["mini", str(tmp_path / folder)]) == 0
    assert "225 clusters" in capsys.readouterr().out
    names = sorted(str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(names) == 17
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False)[0] == names
    assert (tmp_path / "one" / "README.md").read_text() == (SCRIPTS / "mixture" / "README.md").read_text()
    committed = sorted(
        str(p.relative_to(SCRIPTS / "mixture")) for p in (SCRIPTS / "mixture").rglob("*") if p.is_file()
    )
    assert committed == names


def test_vectors_are_written_for_every_shipped_text(tmp_path, monkeypatch, capsys):
    class Lengths:
        def encode(self, texts):
            return np.array([[len(text), 1] for text in texts], np.float32) / 4096

    monkeypatch.setattr(script, "load_encoder", lambda precision: Lengths())
    monkeypatch.setattr(shipped_vectors, "FILE", str(tmp_path / "vectors.safetensors"))
    assert script.main(["vectors"]) == 0
    texts, written = shipped_vectors.shipped_texts(), load_file(tmp_path / "vectors.safetensors")
    assert f"{len(texts)} vectors in" in capsys.readouterr().out
    assert written["keys"].tolist() == [shipped_vectors.key(text) for text in texts]
    assert (written["vectors"] == Lengths().encode(texts).astype(np.float16)).all()


def test_check_rejects_what_is_not_rated_below_its_target(tmp_path, monkeypatch, capsys):
    """With a judge that counts letters: rounds go on until no corruption is as long as its target."""

    class Letters:
        def judge_embedded(self, texts, embeddings, task_type):
            return [float(len(text)) for text in texts]

    class Blind(Letters):
        def encode(self, texts):
            return texts

    monkeypatch.setattr(script, "load_encoder", lambda precision: Blind())
    monkeypatch.setattr(script, "CachedEncoder", lambda encoder: encoder)
    monkeypatch.setattr(script, "build", lambda texts, scores, kinds, encoder: Letters())
    monkeypatch.setattr(bundled, "REDRAWN", str(tmp_path / "redrawn.json"))
    lines = bundled._lines
    monkeypatch.setattr(bundled, "_lines", lambda kind: lines(kind)[::3])
    assert script.main(["check"]) == 0
    written = json.loads((tmp_path / "redrawn.json").read_text())
    assert f"{len(written)} ids in" in capsys.readouterr().out and written == sorted(set(written)) != []
    before, after = bundled.complete_clusters(frozenset()), bundled.complete_clusters(set(written))

    def long(rows):
        spoilt = [(row["target"], weak) for row in rows for weak in row["weak"] if weak["flaw"] in names()]
        return sum(len(weak["text"]) >= len(target) for target, weak in spoilt)

    assert long(before) > 0 == long(after)


def test_own_articles_end_to_end(articles, tmp_path, capsys):
    folder = tmp_path / "own"
    command = ["build", str(folder), "--articles", str(articles), "--no-fusion"]
    assert script.main(command) == 0
    said = capsys.readouterr().out
    sets = {form: load_dataset(str(folder), form) for form in FORMS}
    for form, features in FORMS.items():
        assert all(part.features == features for part in sets[form].values())
    rows = {split: len(sets["sft"][split]) + len(sets["grpo"][split]) for split in ("train", "test")}
    assert rows == {split: len(part) for split, part in sets["raw"].items()}
    assert f"{sum(rows.values())} clusters" in said and "40 segments of 20 articles" in said
    topics = [{row for form in ("sft", "grpo") for row in sets[form][split]["topic"]} for split in ("train", "test")]
    assert topics[0] and topics[1] and not topics[0] & topics[1]
    assert set(sets["raw"]["train"]["source"]) == {"notes (CC0-1.0)", "notes (CC-BY-4.0)"}
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    assert (
        "| notes | CC0-1.0 | 10 |" in card and "| notes | CC-BY-4.0 | 10 |" in card and "No topics are mixed;" in card
    )
    assert script.main(command) == 0  # again, in place
    again = load_dataset(str(folder), "grpo", split="train", cache_dir=str(tmp_path / "again"))
    assert again[:] == sets["grpo"]["train"][:]


def test_nothing_of_others_in_the_folder_is_lost(articles, tmp_path, capsys):
    """A folder `raw` is what many projects keep their own files in."""
    folder = tmp_path / "data"
    (folder / "raw").mkdir(parents=True)
    mine = [folder / "raw" / name for name in ("articles.jsonl", "train-00000-of-00001.parquet")]
    for path in mine:
        path.write_bytes(articles.read_bytes())
    command = ["build", str(folder), "--articles", str(mine[0]), "--no-fusion"]
    assert script.main(command) == 0
    stale = folder / "sft" / "train-0123abcd-00000-of-00001.parquet"
    stale.write_text("of an earlier build")
    assert script.main([*command, "--seed", "1"]) == 0
    assert all(path.read_bytes() == articles.read_bytes() for path in mine) and not stale.exists()
    assert sorted(len(list((folder / form).glob("*.parquet"))) for form in FORMS) == [2, 2, 3]
    (folder / "README.md").write_text("# My project\n")
    capsys.readouterr()
    assert script.main(command) == 1
    assert "README.md is not the card of such a dataset" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "# My project\n"
    assert script.main(["build", str(mine[0]), *command[2:]]) == 1 and "is a file" in capsys.readouterr().err


def test_a_build_that_is_stopped_leaves_the_one_before(articles, tmp_path, monkeypatch):
    folder = tmp_path / "own"
    command = ["build", str(folder), "--articles", str(articles), "--no-fusion"]
    assert script.main(command) == 0
    before = load_dataset(str(folder), "raw", split="train", cache_dir=str(tmp_path / "before"))[:]
    monkeypatch.setattr("hf_lmmixup.mixture_repository._card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        script.main([*command, "--seed", "1"])
    assert load_dataset(str(folder), "raw", split="train", cache_dir=str(tmp_path / "after"))[:] == before


def test_an_article_in_two_rows_keeps_both_licenses(tmp_path):
    text = "The Moon pulls the sea on the near side of Earth more strongly than on the far side {}. " * 3
    rows = [
        {"title": "Tides", "text": text.format(word, word, word), "source": word, "license": name}
        for word, name in (("here", "CC-BY-SA-4.0"), ("there", "MIT"))
    ]
    (tmp_path / "articles.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = script._origins(segment(read_articles(tmp_path / "articles.jsonl")).segments)
    assert found == [Origin("here", "CC-BY-SA-4.0", 1), Origin("there", "MIT", 1)]
    assert license_of(found) == {"license": "cc-by-sa-4.0"}


def test_every_dataset_has_a_journal_of_its_own(articles, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_lmmixup.endpoint.MAX_ATTEMPTS", 1)
    monkeypatch.setattr("hf_lmmixup.endpoint.SINGLE_FAILURES", 1)
    monkeypatch.chdir(tmp_path)
    model = ["--chat-model", "m", "--base-url", "http://127.0.0.1:9/v1", "--concurrency", "1"]
    for name in ("own.v1", "own.v2"):
        assert script.main(["build", name, "--articles", str(articles), "--no-fusion", *model]) == 3
        assert (tmp_path / f"{name}.journal").exists()


def test_where_no_cluster_comes_out_the_reasons_are_told(tmp_path, capsys):
    row = {"title": "a", "text": "and so on it goes with this and that " * 4, "source": "s", "license": "MIT"}
    (tmp_path / "poor.jsonl").write_text(json.dumps(row))
    command = ["build", str(tmp_path / "own"), "--articles", str(tmp_path / "poor.jsonl"), "--no-fusion"]
    assert script.main(command) == 1
    said = capsys.readouterr()
    assert "There is no cluster to write" in said.err and "0 clusters; dropped: {'" in said.out
    with pytest.raises(SystemExit):
        script.main([*command, "--limit", "-1"])
    assert "-1 is not 1 or more" in capsys.readouterr().err


def test_limit_and_dry_run(articles, tmp_path, capsys):
    command = ["build", str(tmp_path / "own"), "--articles", str(articles), "--limit", "10", "--dry-run"]
    assert script.main(command) == 0
    assert "10 segments of 5 articles" in capsys.readouterr().out
    model = ["--chat-model", "m", "--base-url", "http://127.0.0.1:1/v1", "--input-price", "1e6", "--output-price", "0"]
    assert script.main([*command, *model]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    costs = {line[0]: line for line in lines if line[0] in ("target", "rating", "weak", "reasoning")}
    assert all(cost[1] == "10" and float(cost[4]) == float(cost[2]) > 0 for cost in costs.values()) and len(costs) == 4
    assert not (tmp_path / "own").exists() and not list(tmp_path.glob("*.journal"))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--articles", "missing.jsonl"], "No file at missing.jsonl"),
        (["--articles", "empty.jsonl"], "No segment to work on"),
        (["--articles", "bad.jsonl"], "bad.jsonl:1: an article has 'title'"),
        (["--docstrings", "no_such_package"], "No Python source of 'no_such_package'"),
        (["--docstrings", "json", "--chat-model", "m"], "--chat-model needs --base-url"),
        (["--docstrings", "json", "--test-share", "2"], "test_share=2.0 must be at least 0"),
    ],
)
def test_what_cannot_start(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"title": "x"}')
    assert script.main(["build", "own", "--no-fusion", *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "own").exists()


def test_a_stopped_model_ends_with_code_3(articles, tmp_path, capsys, monkeypatch):
    """No server listens there: nothing is guessed, and the journal stays for the next time."""
    monkeypatch.setattr("hf_lmmixup.endpoint.MAX_ATTEMPTS", 1)
    monkeypatch.setattr("hf_lmmixup.endpoint.SINGLE_FAILURES", 1)
    model = ["--chat-model", "m", "--base-url", "http://127.0.0.1:9/v1", "--concurrency", "1"]
    assert script.main(["build", str(tmp_path / "own"), "--articles", str(articles), "--no-fusion", *model]) == 3
    assert "the same command goes on" in capsys.readouterr().err
    assert (tmp_path / "own.journal").exists() and not (tmp_path / "own").exists()


def cluster(**changes):
    [row] = [row for row in bundled.mixture_clusters() if row["topic"] == "tides" and row["task_type"] == "qa"]
    return {**row, **changes}


def test_foreign_words_cannot_reach_the_front_matter(tmp_path):
    evil = "x\n---\nlicense: mit\n---\n<script>alert(1)</script> | `"
    write_repository(
        tmp_path,
        [Configuration("sft", "sft", {"train": [cluster(topic=evil, source=evil)]})],
        title=evil,
        description="text",
        origins=[Origin(evil, evil, 1)],
    )
    card = (tmp_path / "README.md").read_text()
    front = next(yaml.safe_load_all(card.partition("---\n")[2].partition("\n---\n\n#")[0]))
    assert front["license"] == "other" and front["pretty_name"] == evil
    body = card.partition("\n---\n\n#")[2]
    assert "<script>" not in body and "\n---\n" not in body
    assert escape("a|b\nc <d>") == "a\\|b c &lt;d>"


@pytest.mark.parametrize(
    "found, license_name",
    [
        (["CC-BY-4.0"], "cc-by-4.0"),
        (["CC0-1.0", "MIT"], "mit"),  # what is dedicated asks for nothing
        (["MIT", "Apache-2.0"], ["apache-2.0", "mit"]),  # both to be honored
        (["MIT", "CC-BY-SA-4.0"], "cc-by-sa-4.0"),  # shared alike
        (["PSF-2.0"], "other"),  # the Hub has no name for it
        (["MIT", "my own"], "other"),
    ],
)
def test_the_license_covers_all_origins(found, license_name):
    assert license_of([Origin("notes", name, 1) for name in found]) == {"license": license_name}


def test_a_license_that_forbids_adaptations_is_refused_before_any_work(tmp_path, capsys):
    row = {"title": "a", "text": "word " * 30, "source": "wiki", "license": "CC-BY-ND-4.0"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert script.main(["build", str(tmp_path / "own"), "--articles", str(tmp_path / "a.jsonl")]) == 1
    assert "allows no adaptations" in capsys.readouterr().err


def test_shards_hold_all_rows_in_order(tmp_path):
    rows = [cluster(id=str(number)) for number in range(25)]
    write_repository(
        tmp_path,
        [Configuration("grpo", "grpo", {"train": rows, "test": []})],
        title="t",
        description="d",
        origins=[Origin("s", "mit", 1)],
        rows_per_shard=10,
    )
    names = sorted(path.name for path in (tmp_path / "grpo").iterdir())
    assert [re.sub("-[0-9a-f]{8}-", "-", name) for name in names] == [
        "test-00000-of-00001.parquet",
        *(f"train-0000{shard}-of-00003.parquet" for shard in range(3)),
    ]
    loaded = load_dataset(str(tmp_path), split="train")
    assert isinstance(loaded, Dataset) and loaded["id"][:] == [row["id"] for row in rows]
    assert f"| {len(rows[0]['sources'])} | 25 |" in (tmp_path / "README.md").read_text()


def test_a_repository_built_anew_is_not_taken_from_the_cache(tmp_path):
    for word in ("first", "other"):  # of the same length, in one folder, with one cache
        write_repository(
            tmp_path,
            [Configuration("grpo", "grpo", {"train": [cluster(id=word)]})],
            title="t",
            description="d",
            origins=[Origin("s", "mit", 1)],
        )
        assert load_dataset(str(tmp_path), split="train")["id"][:] == [word]


def test_nothing_to_write():
    with pytest.raises(ValueError, match="There is no cluster to write"):
        write_repository("unused", [Configuration("sft", "sft", {"train": []})], title="", description="", origins=[])


@pytest.mark.parametrize(
    "docstring, prose",
    [
        # parameters, examples and directives end it
        ("Add two numbers.\n\nSlowly.\n\nParameters\n----------\nx : int\n", "Add two numbers.\n\nSlowly."),
        ("Add.\n\n>>> add(1, 2)\n3\n", "Add."),
        ("Add.\n\nArgs:\n    x: one\n", "Add."),
        ("Add.\n\n.. note:: careful\n", "Add."),
        # lists and indented blocks are left out, what follows stays
        ("Add.\n\n- one\n- two\n\nDone.", "Add.\n\nDone."),
        # markup goes, its words stay
        ("Calls :func:`~numpy.add` and ``sub`` *twice*.", "Calls numpy.add and sub twice."),
        ("", ""),
    ],
)
def test_prose_of_docstrings(docstring, prose):
    assert docstrings.prose(docstring) == prose


def test_docstrings_are_read_without_running_anything(tmp_path, monkeypatch):
    package = tmp_path / "trapped"
    package.mkdir()
    (package / "__init__.py").write_text('"""First words."""\nraise SystemExit("it was imported")\n')
    (package / "part.py").write_text('class A:\n    """About A."""\n    def f(self):\n        """About f."""\n')
    (package / "broken.py").write_text("def (")
    (package / "test_part.py").write_text('"""Not of interest."""')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(docstrings, "_license", lambda package: "MIT")
    found = {article.title: article.sections for article in docstrings.read_docstrings(["trapped"])}
    assert found == {
        "trapped": (("trapped", "First words."),),
        "trapped.part": (("trapped.part.A", "About A."), ("trapped.part.A.f", "About f.")),
    }


LICENSES = [  # lines of a distribution's metadata, the license that it states
    ("License-Expression: BSD-3-Clause AND MIT\nLicense: other", "BSD-3-Clause AND MIT"),
    ("License: MIT License\n        Copyright the authors", "MIT License"),
    ("License: UNKNOWN\nClassifier: Topic :: Text\nClassifier: License :: OSI Approved :: BSD License", "BSD License"),
    ("Name: none", ""),
]


@pytest.mark.parametrize(("lines", "stated"), LICENSES)
def test_the_license_that_a_package_states(lines, stated):
    assert docstrings._stated(email.message_from_string(lines)) == stated


def test_a_module_without_a_license_is_not_taken(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_module.py").write_text('"""Words."""')
    monkeypatch.syspath_prepend(tmp_path)
    assert script.main(["build", str(tmp_path / "own"), "--docstrings", "own_module", "--no-fusion"]) == 1
    assert "'own_module' states no license" in capsys.readouterr().err


def test_docstrings_of_the_standard_library():
    articles = list(docstrings.read_docstrings(["json", "argparse"]))
    assert {"json", "json.decoder", "argparse"} <= {article.title for article in articles}
    assert {article.license for article in articles} == {"PSF-2.0"}
    assert len(segment(articles).segments) > 20


def test_the_documentation_page(tmp_path):
    """Every block of docs/build_your_own_mixture.md runs, in order, in one folder."""
    page = (ROOT / "docs" / "build_your_own_mixture.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.S)
    assert [language for language, _ in blocks] == ["python", "bash", "python", "bash", "python"]
    (tmp_path / "dataset_scripts").symlink_to(SCRIPTS)
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for language, block in blocks:
        program = [sys.executable, "-W", "error", "-c"] if language == "python" else ["bash", "-euc"]
        done = subprocess.run([*program, block], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
    assert (tmp_path / "my_mixture" / "README.md").exists()
