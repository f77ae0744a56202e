"""What the command says on the screen: paths as they are, in one piece; what an interrupted command will do."""

import pytest
import typer
from typer.testing import CliRunner

import hf_lmmixup
from hf_lmmixup.cli import app
from hf_lmmixup.console import console, errors, progress_bar, say
from hf_lmmixup.pipeline import Finished


LEDGER = {"rows_in": 1, "kept": 1, "merged": 0, "distilled_rows": 0, "dropped": {"a [b] c": 2}, "notes": ["see [x]"]}


def lmmixup(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("worked", [True, False])
def test_the_place_of_a_run_can_be_copied_from_the_screen(tmp_path, monkeypatch, worked):
    folder = tmp_path / "a folder with a name that does not fit into one line of a terminal" / "[draft] runs" / "one"
    folder.mkdir(parents=True)
    (folder / "report.html").touch()
    monkeypatch.setattr("hf_lmmixup.pipeline.run", lambda *_, **__: Finished(folder, LEDGER, worked))
    told = lmmixup("run", "extractive", "-o", folder)
    assert str(folder) in told
    if worked:
        assert f'load_dataset("{folder}/dataset")' in told and str(folder / "report.html") in told
        assert "dropped: a [b] c" in told and "see [x]" in told


@pytest.mark.parametrize("worked", [True, False])
def test_a_run_without_a_row_names_no_dataset_to_load(tmp_path, monkeypatch, worked):
    nothing = LEDGER | {"rows_in": 1200, "kept": 0}
    monkeypatch.setattr("hf_lmmixup.pipeline.run", lambda *_, **__: Finished(tmp_path, nothing, worked))
    told = lmmixup("run", "extractive", "-o", tmp_path, code=4)
    assert "none of 1,200 rows is in the dataset" in told and "load_dataset" not in told


@pytest.mark.parametrize("text", ["[draft] pile", "a\\[b] c", "[/] [bold]"])
def test_an_error_is_shown_as_it_is(text):
    with console.capture() as said, pytest.raises(typer.Exit), errors():
        raise ValueError(text)
    assert said.get() == f"Error: {text}\n"


FAULTS = [
    (ValueError("x"), 1, "Error: x"),
    (FileNotFoundError(2, "No such file", "a"), 1, "Error: [Errno 2] No such file: 'a'"),
    (RuntimeError("x"), 3, "Stopped: x"),
    (OSError(28, "No space left on device", "a"), 3, "Stopped: [Errno 28] No space left on device: 'a'"),
    (OSError(30, "Read-only file system", "a"), 3, "Stopped: [Errno 30] Read-only file system: 'a'"),
]


@pytest.mark.parametrize(("fault", "code", "message"), FAULTS, ids=[row[2] for row in FAULTS])
def test_a_fault_is_one_message_and_verbose_tells_where(fault, code, message, caplog):
    caplog.set_level("INFO")
    with console.capture() as said, pytest.raises(typer.Exit) as ended, errors():
        raise fault
    assert (ended.value.exit_code, said.get()) == (code, f"{message}\n")
    assert caplog.records[-1].exc_info[1] is fault


def test_a_stage_is_named_as_it_is():
    with console.capture() as said, progress_bar() as told:
        told("loading models/[x]", 0, 0)
    assert said.get() == "loading models/[x] ...\n"


@pytest.mark.parametrize(("resumes", "words"), [(True, "goes on from here"), (False, "begins anew")])
def test_an_interrupted_command_says_what_the_next_one_does(resumes, words):
    with console.capture() as said, pytest.raises(typer.Exit) as ended, errors(resumes=resumes):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert said.get() == f"Interrupted. The same command {words}.\n"


def test_a_sentence_is_one_line():
    with console.capture() as said:
        say("word " * 60)
    assert said.get().count("\n") == 1


def test_the_help_tells_the_exit_codes():
    assert "Exit codes: 0 done, 1 cannot start, 2 usage" in " ".join(lmmixup("--help").split())


def test_the_version():
    assert lmmixup("--version").strip() == f"hf_lmmixup {hf_lmmixup.__version__}"


def test_recipes_of_the_package_are_checked_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = " ".join(lmmixup("check", "quickstart/grpo", code=1).split())
    assert "No recipe" not in told and "models/tiny-distiller-sft" in told
    told = " ".join(lmmixup("train", "quickstart/nosuch", code=1).split())
    assert "No recipe at quickstart/nosuch" in told
