"""Does GRPO raise the total reward on held-out prompts, whatever the seed? Several trainings over one cold start.

    python benchmarks/grpo_seeds.py runs/quickstart

takes the cold start of a finished `lmmixup run quickstart`, trains it by plain `trl grpo` with
`recipes/quickstart/grpo.yaml` and the seeds 0, 1, 2, and judges each model on the 45 prompts of the topics that no
training saw, as the run does: greedy completions, the weighted sum of the rewards. A seed takes some two minutes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hf_lmmixup.distiller import mixture
from hf_lmmixup.held_out import judge
from hf_lmmixup.recipe import DistillerRecipe, load_recipe
from hf_lmmixup.training import cores, trl_command
from hf_lmmixup.writers import open_writer


TARGET = 0.05
"""Points of total reward that GRPO shall add."""

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart" / "grpo.yaml"
ENVIRONMENT = {"HF_LMMIXUP_DATASTORE": "bundled"}


def main() -> None:
    """Train with every seed and print what each adds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a finished run of the quickstart")
    parser.add_argument("--seeds", type=int, default=3, help="how many (3)")
    options = parser.parse_args()
    cold_start = options.run / "training" / "cold_start"
    if not (cold_start / "model.safetensors").is_file():
        sys.exit(f"{options.run} holds no cold start. Make it with: lmmixup run quickstart")
    distiller = load_recipe(options.run / "recipe.yaml").distiller
    before = held_out(cold_start, distiller)
    print(f"cold start: total {before['total']:.3f}, format {before['format']:.3f}", flush=True)
    gains = []
    for seed in range(options.seeds):
        after = held_out_after(cold_start, distiller, seed)
        gains.append(after["total"] - before["total"])
        print(f"seed {seed}: total {after['total']:.3f} ({gains[-1]:+.3f}), format {after['format']:.3f}", flush=True)
    mean = statistics.mean(gains)
    print(
        f"grpo_seeds: gain={mean:.3f} target={TARGET} {'ok' if mean >= TARGET else 'short'} "
        f"(mean of {len(gains)} seeds, spread {min(gains):.3f} to {max(gains):.3f})"
    )


def held_out_after(cold_start: Path, distiller: DistillerRecipe, seed: int) -> dict:
    """Train with one seed in a folder of its own, and judge the model."""
    with tempfile.TemporaryDirectory() as folder:
        values = {"model_name_or_path": cold_start, "output_dir": folder, "seed": seed}
        more = [text for name, value in values.items() for text in (f"--{name}", str(value))]
        command = [*trl_command(), "grpo", "--config", str(RECIPE), *more]
        threads = {"OMP_NUM_THREADS": str(cores())}  # else the launcher of `trl` takes one
        ended = subprocess.run(command, env=threads | os.environ | ENVIRONMENT, capture_output=True, text=True)
        if ended.returncode:
            sys.exit(f"trl grpo ended with exit code {ended.returncode}:\n{ended.stderr[-3000:]}")
        return held_out(Path(folder), distiller)


def held_out(model: Path, distiller: DistillerRecipe) -> dict:
    """Mean rewards on the held-out prompts."""
    rows = mixture("grpo", "test").to_list()[: distiller.held_out]
    return judge(open_writer(distiller, str(model)).generate, rows, ENVIRONMENT)


if __name__ == "__main__":
    main()
