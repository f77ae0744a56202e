"""`docs/how_to.md`: its commands and its Python run, on a few bundled rows."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, invoked

from hf_lmmixup.bundled import pool_file
from hf_lmmixup.recipe import Recipe
from hf_lmmixup.strict_yaml import fill


PAGE = (REPOSITORY / "docs" / "how_to.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_commands_and_the_python_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pile.jsonl").write_text("".join(pool_file().read_text().splitlines(keepends=True)[:60]))
    for line in blocks("bash")[0].splitlines():
        invoked(*shlex.split(line)[1:])
    assert Path("dataset.parquet").is_file() and Path("stores/mine").is_dir()
    for code in blocks("python"):
        exec(compile(code, "docs/how_to.md", "exec"), names := {})
    assert names["short_reward"]([[{"content": "x"}], [{"content": "x" * 501}]], task_type=["qa", "qa"]) == [1.0, 0.0]
    assert Path("runs/pile/report.html").is_file() and Path("runs/mine/report.html").is_file()


@pytest.mark.parametrize("text", re.findall(r"`((?:distiller|decontaminate|select|datastore): .+?)`", PAGE))
def test_what_the_page_writes_into_a_recipe_is_one(text):
    assert fill(Recipe, {"name": "x", **yaml.safe_load(text)}, where="docs/how_to.md")
