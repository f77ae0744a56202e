"""`docs/scaling.md`: its Python runs, its commands parse."""

import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main
from borrowed_tools import raw_rows, tools
from conftest import REPOSITORY, invoked
from test_modes import recipe

from hf_lmmixup.cli import app
from hf_lmmixup.pipeline import run
from hf_lmmixup.recipe import DecontaminateRecipe, DistillerRecipe


PAGE = (REPOSITORY / "docs" / "scaling.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_shards_are_cut_run_and_put_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_lmmixup.encoder.load_encoder", lambda name=None: tools().encoder)
    pq.write_table(pa.Table.from_pylist(raw_rows(range(30))), "pile.parquet")
    cut, join = (code.replace("300_000", "16") for code in blocks("python"))
    exec(compile(cut, "docs/scaling.md", "exec"), {})
    shards = sorted(Path("shards").iterdir())
    assert [pq.read_metadata(shard).num_rows for shard in shards] == [16, 14]
    for shard in shards:
        options = {"decontaminate": DecontaminateRecipe(), "distiller": DistillerRecipe(mode="extractive")}
        job = recipe(tmp_path, input=str(shard), output=f"runs/{shard.stem}", **options)
        run(job, tools=tools())
    exec(compile(join, "docs/scaling.md", "exec"), {})
    both = pq.read_table("all.parquet")["id"].to_pylist()
    assert len(both) == len(set(both)) > 2
    invoked(*shlex.split(blocks("bash")[2])[1:])
    assert pq.read_metadata("selected.parquet").num_rows <= len(both)


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines()])
def test_commands_parse(line):
    words = shlex.split(line)
    assert words[0] == "lmmixup"
    group = typer.main.get_command(app)
    assert group.commands[words[1]].make_context("lmmixup", words[2:]).params


def test_slurm_script_runs_a_recipe_that_exists():
    (script,) = blocks("text")
    (command,) = [line for line in script.splitlines() if "lmmixup run" in line]
    words = shlex.split(command)[3:]
    assert (REPOSITORY / words[0]).is_file()
    assert typer.main.get_command(app).commands["run"].make_context("lmmixup", words).params
