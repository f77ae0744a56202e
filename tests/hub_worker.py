"""Clients of the loopback Hub: a process that has imported the client libraries once, and forks for every call.

The libraries read `HF_ENDPOINT` when they are imported, so the process of the tests itself cannot be a client. A call
is the name of a function in this file and its arguments, as one line of JSON on the standard input; the fork says its
process id, waits for a line, and answers with what the function returns or raises. One that is killed answers nothing.
"""

import importlib
import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path


def push(kind, path, repo_id, *, public=False, tag=None, **options):
    from hf_lmmixup import hub

    return asdict(getattr(hub, f"push_{kind}")(path, repo_id, public=public, tag=tag, **options))


def prepare(kind, path, repo_id, **options):
    from hf_lmmixup import hub

    publication = hub.prepare(kind, path, repo_id, **options)
    return {"files": [file.name for file in publication.files], "licenses": publication.licenses}


def command(*arguments):
    """Run `lmmixup`: its exit code and what it says."""
    import contextlib
    import io

    from hf_lmmixup.cli import app

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            app(list(arguments), standalone_mode=True)
        except SystemExit as end:
            return {"code": end.code or 0, "said": " ".join(said.getvalue().split())}


def train(*arguments):
    """What `trl sft` does with its arguments."""
    import contextlib

    from trl.scripts import sft

    with contextlib.redirect_stdout(sys.stderr):
        sft.main(*sft.make_parser().parse_args_and_config(list(arguments)))


def python(code):
    """Run a program; what it prints."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "python -c", "exec"), {})
    return said.getvalue()


def load(repo_id, *, streaming=False, revision=None):
    """Read a dataset as somebody does who never heard of this package."""
    sys.meta_path.insert(0, Absent())
    for name in [name for name in sys.modules if name.startswith("hf_lmmixup")]:
        del sys.modules[name]
    from datasets import load_dataset

    return list(load_dataset(repo_id, split="train", streaming=streaming, revision=revision))


def push_loaded_datastore(path, repo_id, **options):
    """Publish a datastore by its own method."""
    from hf_lmmixup.datastore import ScoredDatastore

    return asdict(ScoredDatastore.load(path).push_to_hub(repo_id, **options))


def load_datastore(repo_id):
    from hf_lmmixup.datastore import ScoredDatastore

    store = ScoredDatastore.from_pretrained(repo_id)
    return {"scores": store.scores.tolist(), "encoder": store.encoder, "embeddings": store.embeddings.tolist()}


def run_card(repo_id, kind):
    """Execute the Python of a card, and return what its variables hold."""
    from huggingface_hub import ModelCard

    code = ModelCard.load(repo_id, repo_type=kind).content.split("```python\n")[1].split("```")[0]
    names = {}
    exec(compile(code, repo_id, "exec"), names)
    return {name: type(value).__name__ for name, value in names.items() if not name.startswith("_")}


def largest_difference(base, adapter, merged):
    """Between the logits of an adapter on its base and those of the merged model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    first = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    second = AutoModelForCausalLM.from_pretrained(merged)
    tokens = torch.arange(5)[None]
    with torch.no_grad():
        return float((first(tokens).logits - second(tokens).logits).abs().max())


def write_model(folder):
    from hf_lmmixup.tiny_distiller import build_tiny_distiller

    build_tiny_distiller(folder, ["Q: Why?\nA: Because."])


def write_adapter(folder, base):
    """A LoRA adapter whose weights do something, over a base model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)


def weights(repo_id):
    """Digest of all weights that `AutoModelForCausalLM` loads."""
    import hashlib

    from transformers import AutoModelForCausalLM

    digest = hashlib.sha256()
    for name, tensor in sorted(AutoModelForCausalLM.from_pretrained(repo_id).state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


class Absent:
    """Makes this package impossible to import."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_lmmixup":
            raise ModuleNotFoundError(name)


def prepared_worker():
    """Import what every call needs; requests are repeated without the usual waits."""
    import datasets
    import huggingface_hub.utils._http as http

    import hf_lmmixup.hub
    from hf_lmmixup import patience

    assert datasets and hf_lmmixup.hub
    for module in os.environ["WORKER_IMPORTS"].split():
        importlib.import_module(module)
    patience.FIRST_WAIT_S = 0.01
    http.time.sleep = lambda seconds: None
    logging.basicConfig(level=logging.DEBUG, filename=os.environ["WORKER_LOG"])


def say(message):
    sys.stdout.write(json.dumps(message, default=str) + "\n")
    sys.stdout.flush()


def answer(call):
    """Do one call in this process; what it returns or raises goes to the standard output."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = not call["xet"]
    constants.HF_HOME = call["home"]
    constants.HF_HUB_CACHE = constants.HF_XET_CACHE = str(Path(call["home"], "hub"))
    say({"pid": os.getpid()})
    sys.stdin.readline()
    try:
        result = {"returned": globals()[call["name"]](*call["arguments"], **call["options"])}
    except Exception as error:
        logging.exception("call %s failed", call["name"])
        result = {"raised": type(error).__name__, "message": str(error)}
    say(result)


def main():
    prepared_worker()
    say({"ready": True})
    while line := sys.stdin.readline():
        process = os.fork()
        if process == 0:
            answer(json.loads(line))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        say({"status": status})
    os._exit(0)  # large libraries take seconds to leave


if __name__ == "__main__":
    main()
