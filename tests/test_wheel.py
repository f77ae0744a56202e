"""What users get: the wheel has every file that the package reads, nothing else, and its command runs.

The source distribution has what its tests read besides.
"""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest
from conftest import REPOSITORY


SOURCE_FOLDERS = "hf_lmmixup recipes tests docs model_cards dataset_scripts evaluate_modules benchmarks".split()
SOURCE_FILES = "README.md AGENTS.md CONTRIBUTING.md CHANGELOG.md LICENSE NOTICE CITATION.cff Makefile".split()
SOURCE_FILES += ["constraints.txt", "pyproject.toml"]


def build(kind, folder):
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def files_of(folders):
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*")]
    return [path.relative_to(REPOSITORY).as_posix() for path in files if path.is_file() and path.suffix != ".pyc"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_what_the_package_reads(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    names = files_of(["hf_lmmixup", "recipes"])
    wanted = {name if name.startswith("hf_lmmixup") else f"hf_lmmixup/{name}" for name in names}
    assert len(wanted) > 100
    assert "hf_lmmixup/py.typed" in packed  # without it, type checkers take every name for Any
    assert wanted - packed == set()
    assert {name for name in packed if name.endswith((".pyc", ".pth", ".pt", ".pkl"))} == set()


def test_source_distribution_holds_what_its_tests_read(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {*files_of(SOURCE_FOLDERS), *SOURCE_FILES} - packed == set()
    assert {name.partition("/")[0] for name in packed} - {*SOURCE_FOLDERS, *SOURCE_FILES} <= {"PKG-INFO", ".gitignore"}


def test_command_of_the_unpacked_wheel_finds_its_recipes(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "import hf_lmmixup, hf_lmmixup.recipe as r, hf_lmmixup.bundled as b\n"
        "assert hf_lmmixup.__file__.startswith(r.__file__[:5]) and 'site' in hf_lmmixup.__file__\n"
        "print(r.load_recipe(r.find_recipe('quickstart')).name, len(b.mini_clusters()))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert told.stdout == "quickstart 225\n"
