"""The law of the house, read from the sources: imports go down, files stay small, nothing unpickles or prints."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY

import hf_lmmixup
import hf_lmmixup.sftmix


PACKAGE = REPOSITORY / "hf_lmmixup"

LAYERS = [
    (
        "words and numbers",
        "records process_environment bounds public_names",
    ),
    (
        "pure functions",
        "mapped_files batch_state card_markup half_precision nearest cell_search differences exact_search words "
        "numerals facts features figures fingerprint inspection intervals key_places journal jsonl ledger licenses "
        "mosaic_config near_duplicates observations pacing event_loops projection "
        "prompts rating_prompt row_stream score_health secrecy strict_yaml tables tensor_files transition "
        "recipe run_directory token_choice verdict wording articles comparison_figures construction_prompts "
        "corruption coverage distilled_rows drawings guards inputs loading lm_eval_tasks mixture_rows "
        "mosaic_templates neighbors patience published row_figures score_head target_checks training_figures bundled "
        "shipped_vectors construction_plan diversity faithfulness mosaic_costs mosaic_rows quality_report readings "
        "run_figures mosaic_plan offline_writer mosaic_length mosaic_text mosaic_tokens mosaic_passes "
        "mosaic_stream stage_files mosaic_files mosaic evaluation_sets correction",
    ),
    (
        "borrowed models and stores",
        "chat_model datastore_files encoder four_bit overlap generation prompt_lengths publication "
        "transport vllm_generation construction datastore digit_model dispatch endpoint hub_repository "
        "local_model paged_generation label_heads tiny_distiller chat_writer reward_settings served_generation "
        "checkpoints preflight training raters",
    ),
    (
        "stages",
        "clustering attachment decontamination deduplication distillation extractive rating selection",
    ),
    (
        "plugs",
        "cards cluster_page mixture mixture_repository monitors watching report run_facts rewards sftmix "
        "model_folder artifacts public_benchmarks hub",
    ),
    (
        "the job",
        "distiller held_out evaluation systems data_arms downstream comparison vectors stages writers "
        "earlier_run preparation ray_engine planning distilling results lineage pipeline",
    ),
    (
        "the command",
        "console commands cli",
    ),
]

MAX_LINES, MAX_FUNCTION_LINES = 300, 40

HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "sentence_transformers", "openai", "vllm", "ray")
"""Imported only inside the function that needs them; `sftmix` subclasses TRL and may name it at the top."""

UNPICKLERS = ("pickle", "joblib", "dill", "marshal", "shelve", "cloudpickle")

FORBIDDEN_NAMES = ("utils", "helpers", "common", "misc", "base", "manager", "handler")


def module_of(path) -> str:
    """The concept a file belongs to: a module, or the folder it lies in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parts[-2] != "recipes")
LAYER = {name: number for number, (_, names) in enumerate(LAYERS) for name in names.split()}
ORDER = {name: place for place, name in enumerate(" ".join(names for _, names in LAYERS).split())}
ROOT = {"__init__"}


def own_imports():
    """Every import of our own modules: (file, importing module, imported module)."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module == "hf_lmmixup":
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_lmmixup."):
                names = [node.module.split(".")[1]]
            elif isinstance(node, ast.Import):
                names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("hf_lmmixup.")]
            for name in names:
                if module_of(path) != name and module_of(path) not in ROOT:
                    yield str(path.relative_to(PACKAGE)), module_of(path), name


def top_level_imports(tree: ast.Module):
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


def layer_table() -> str:
    """The table of layers as it stands in the README; a module imports only what stands above it or to its left."""
    rows = [
        f"| {number} | {title} | {' '.join(f'`{name}`' for name in names.split())} |"
        for number, (title, names) in enumerate(LAYERS)
    ]
    return "\n".join(["| layer | what it is | modules |", "|---|---|---|", *rows])


def test_every_module_has_a_layer():
    assert {module_of(path) for path in FILES} - ROOT == set(LAYER)


@pytest.mark.parametrize(("file", "module", "imported"), sorted(set(own_imports())))
def test_imports_go_down(file, module, imported):
    assert ORDER[imported] < ORDER[module], f"{file} (layer {LAYER[module]}) imports {imported} ({LAYER[imported]})"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file(path):
    source = path.read_text()
    tree = ast.parse(source)
    assert source.count("\n") <= MAX_LINES
    assert ast.get_docstring(tree), "no module docstring"
    assert path.stem not in FORBIDDEN_NAMES
    heavy = set(top_level_imports(tree)) & set(HEAVY)
    assert not heavy or module_of(path) == "sftmix", f"imports {heavy} at the top"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.body[0].lineno + 1
            documented = ast.get_docstring(node, clean=False)
            code = lines - (documented.count("\n") + 1 if documented else 0)
            assert code <= MAX_FUNCTION_LINES, f"{node.name} has {code} lines"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {name.split(".")[0] for name in names} & set(UNPICKLERS)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load")
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "bare except"
            assert not (len(node.body) == 1 and isinstance(node.body[0], ast.Pass)), "swallowed error"
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_trl_is_named_in_one_place(path):
    imported = {name for node in ast.walk(ast.parse(path.read_text())) for name in _imported(node)}
    assert "trl" not in imported or module_of(path) == "sftmix"


def _imported(node) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [(node.module or "").split(".")[0]] if isinstance(node, ast.ImportFrom) else []


def test_what_is_imported_at_the_top_is_a_declared_dependency():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=]", one)[0].lower() for one in project["dependencies"]}
    called = {"faiss": "faiss-cpu", "yaml": "pyyaml"}
    ours = {*sys.stdlib_module_names, PACKAGE.name}
    own = [path for path in FILES if module_of(path) not in ("sftmix", "lm_eval_tasks")]  # loaded with their extras
    imported = {name for path in own for name in top_level_imports(ast.parse(path.read_text()))} - ours
    assert {called.get(name, name) for name in imported} == declared


def test_public_names_exist_and_the_import_is_light():
    program = (
        "import sys, hf_lmmixup\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "assert callable(hf_lmmixup.hub.push_dataset) and not hasattr(hf_lmmixup, 'hubb')\n"
        "print(all(getattr(hf_lmmixup, name) is not None for name in hf_lmmixup.__all__))"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert told.stdout == "True\n"


@pytest.mark.parametrize("package", [hf_lmmixup, hf_lmmixup.sftmix], ids=lambda package: package.__name__)
def test_a_type_checker_sees_what_stands_behind_the_lazy_names(package):
    tree = ast.parse(Path(package.__file__).read_text())
    (known,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    named = {alias.name: node.module for node in known.body for alias in node.names}
    assert named == {name: f"{package.__name__}.{module}" for name, module in package._MODULE_OF.items()}
    assert set(package.__all__) - {"__version__"} == set(named)
    # A `__getattr__` that a type checker sees makes every misspelt name a good one.
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"]
