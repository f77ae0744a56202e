"""README and docs cannot lie: their Python runs, their YAML parses, their files exist, their table is the law."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from test_architecture import LAYERS, layer_table

import hf_lmmixup


README = (REPOSITORY / "README.md").read_text()

PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "CHANGELOG.md")]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_snippet_runs(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    for wanted in re.findall(r"#( \[.*\])$", code, re.MULTILINE):
        assert wanted.strip() in printed


def test_yaml_snippet_is_what_the_recipe_says():
    (snippet,) = [yaml.safe_load(text) for text in blocks("yaml")]
    recipe = yaml.safe_load((REPOSITORY / "recipes/quickstart/grpo.yaml").read_text())
    assert snippet == {key: recipe[key] for key in snippet}


def test_there_are_three_snippets_and_two_commands():
    assert len(blocks("python")) + len(blocks("yaml")) == 3
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_layer_table_is_the_law():
    assert layer_table() in README, f"README must hold this table:\n{layer_table()}"
    assert len(LAYERS) > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_exist(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_named_in_commands_exist(page: Path):
    for name in re.findall(r"recipes/[\w./-]+\.(?:yaml|py)", page.read_text()):
        assert (REPOSITORY / name).is_file(), f"{page.name} names {name}"


def test_the_citation_names_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == hf_lmmixup.__version__


def test_the_citation_names_the_papers_of_the_readme():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    named = {one["url"].rpartition("/")[2] for one in citation["references"]}
    assert named == set(re.findall(r"arxiv\.org/abs/([\d.]+)", README))


def test_pre_commit_lets_our_own_files_in():
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    hooks = {hook["id"]: hook.get("args", []) for repository in config["repos"] for hook in repository["hooks"]}
    (limit,) = [int(argument.removeprefix("--maxkb=")) for argument in hooks["check-added-large-files"]]
    largest = max(path.stat().st_size for path in (REPOSITORY / "hf_lmmixup" / "data").rglob("*") if path.is_file())
    assert largest <= limit * 1024
    assert hooks["check-yaml"] == ["--unsafe"]  # lm-eval's tasks name functions by a tag


HELP = [  # file, what its help must say
    ("hf_lmmixup/commands/job.py", "quickstart, extractive or training_free"),  # all recipes of the package
    ("hf_lmmixup/commands/job.py", "which takes some minutes"),  # the tiny distiller reads
    ("dataset_scripts/mixture.py", "overwrites the list of them"),  # `check` writes into the package
]


@pytest.mark.parametrize(("file", "words"), HELP)
def test_help_says_what_surprises(file, words):
    assert words in (REPOSITORY / file).read_text()


def test_the_metric_asks_for_what_its_default_encoder_needs():
    folder = REPOSITORY / "evaluate_modules" / "instruction_distillation"
    (needed,) = (folder / "requirements.txt").read_text().split()
    assert f'# dependencies = ["{needed}"]' in (folder / "instruction_distillation.py").read_text()
    assert needed in (folder / "README.md").read_text() and "offline" in needed
