"""The `evaluate` module, loaded as others load it, in a process of its own: `evaluate` writes to a cache."""

import json
import os
import re
import subprocess
import sys

from conftest import REPOSITORY
from loopback_hub import WRITE_TOKEN, serve


FOLDER = REPOSITORY / "evaluate_modules" / "instruction_distillation"

PROGRAM = """
import json
import sys
import warnings

warnings.simplefilter("ignore")
import evaluate

metric = evaluate.load(sys.argv[1])
reference = "Q: What causes tides?\\nA: The Moon pulls the sea; two tides come each day."
good = f"<think>Both ask about tides.</think>\\n<answer>{reference}</answer>"
sources = ["Q: tides?\\nA: the Moon pulls the sea", "Q: how often\\nA: two tides each day"]
full = metric.compute(
    predictions=[good, "tides"],
    references=[reference, reference],
    task_types=["qa", "qa"],
    sources=[sources, sources],
    datastore="bundled",
)
print(json.dumps([full, metric.compute(predictions=[good], references=[""], token_similarity=False)]))
readme = {}
exec(sys.argv[2], readme)
assert readme["scores"]["format"] == 1.0

from huggingface_hub import HfApi

HfApi().create_repo("tester/instruction_distillation", repo_type="space", space_sdk="static", private=True)
HfApi().upload_folder(repo_id="tester/instruction_distillation", repo_type="space", folder_path=sys.argv[1])
published = evaluate.load("tester/instruction_distillation")
assert published.compute(predictions=[good], references=[""], token_similarity=False)["format"] == 1.0
"""


def test_it_loads_by_folder_and_repository_and_averages_no_none(tmp_path):
    code = re.search(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.S).group(1)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_TOKEN": WRITE_TOKEN}
    command = [sys.executable, "-c", PROGRAM, str(FOLDER), code]
    with serve(tmp_path / "store") as hub:
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
        told = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=REPOSITORY)
    assert told.returncode == 0, told.stderr
    full, bare = json.loads(told.stdout.splitlines()[0])
    assert full["format"] == full["alignment"] == full["rouge_l"] == 0.5  # one is perfect, one malformed
    assert full["judged"]["quality"] >= 1 and 0 <= full["quality"] <= 1
    assert full["length"] > 60 and full["judged"]["length"] == 1
    assert full["task_types"]["qa"]["format"] == 0.5
    # without references, sources and a datastore nothing is compared, and nothing is 0
    assert bare["format"] == 1.0
    assert bare["alignment"] is None and bare["rouge_l"] is None and bare["quality"] is None
    assert bare["judged"] == {
        "format": 1,
        "alignment": 0,
        "quality": 0,
        "coverage": 0,
        "total": 1,
        "rouge_l": 0,
        "length": 1,
    }
