"""TRL's GRPO script with scripted completions, so that its result can be compared over numbers of processes.

Each completion of a group comes from `COMPLETIONS` by its place in the group, wherever that is computed. What the
rewards were given is written beside the model.
"""

import json
from pathlib import Path

from trl import GRPOTrainer
from trl.scripts import grpo

from hf_lmmixup.bundled import read_mini
from hf_lmmixup.observations import drain
from hf_lmmixup.prompts import format_completion


CLUSTER = read_mini("qa")[0]

COMPLETIONS = [
    format_completion(CLUSTER["reasoning"], CLUSTER["target"]),
    format_completion("Both ask the same.", CLUSTER["weak"][0]["text"]),
    "no tags at all",
    format_completion("Bees are asked for.", "Q: How do bees talk?\nA: They dance in the dark hive."),
    "<answer>no reasoning</answer>",
    format_completion("Both ask the same.", CLUSTER["target"].partition("A: ")[2]),
    format_completion("Why.", CLUSTER["target"].replace(" the ", " a ")),
    "",
]

make_parser = grpo.make_parser


def main(script, training, model, mixture):
    def scripted(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        first = self.accelerator.process_index * len(prompt_ids)
        texts = [COMPLETIONS[(first + place) % num_generations] for place in range(len(prompt_ids))]
        return [[*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id] for text in texts], None

    GRPOTrainer._generate_single_turn = scripted
    drain()
    grpo.main(script, training, model, mixture)
    calls = [[call.reward, len(call.completions)] for call in drain()]
    (Path(training.output_dir) / f"calls-{training.process_index}.json").write_text(json.dumps(calls))
