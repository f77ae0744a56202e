"""What users get: the wheel has every file that the package reads, nothing else, and its command runs."""

import os
import subprocess
import sys
import zipfile

import pytest
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_what_the_package_reads(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for folder in ("hf_lmmixup", "recipes") for path in (REPOSITORY / folder).rglob("*")]
    names = [path.relative_to(REPOSITORY).as_posix() for path in files if path.is_file() and path.suffix != ".pyc"]
    wanted = {name if name.startswith("hf_lmmixup") else f"hf_lmmixup/{name}" for name in names}
    assert len(wanted) > 100
    assert wanted - packed == set()
    assert {name for name in packed if name.endswith((".pyc", ".pth", ".pt", ".pkl"))} == set()


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
