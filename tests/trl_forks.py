"""TRL's own training scripts, each in a process of its own, with the imports paid once.

A server process imports TRL and forks for each training; the fork runs the `main` of `trl.scripts.sft` or
`trl.scripts.grpo`, or of another script, with the arguments that `trl` would give it. It may be killed by SIGKILL at
a step, and may be one of several processes of a distributed training, with the variables that launchers set. A fork
may also be `lmmixup`, whose trainings are forks of it, and be killed with them as soon as a folder is there.

The file is also the server: `python tests/trl_forks.py` reads one job a line and answers with exit codes.
"""

import atexit
import faulthandler
import importlib
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from functools import cache, wraps
from pathlib import Path

from tqdm import tqdm


ROOT = Path(__file__).resolve().parents[1]

SLOW_IMPORTS = (
    "trl.trainer.sft_trainer",
    "trl.trainer.grpo_trainer",
    "trl.scripts.sft",
    "trl.scripts.grpo",
    "peft",
    "bitsandbytes",
    "torch._dynamo",
    "transformers.models.qwen2.modeling_qwen2",
    "hf_lmmixup.rewards",
    "hf_lmmixup.cli",
)


LIMIT = 180
"""Seconds after which a training writes where it stands to its log and fails: one that waits for ever says nothing."""


@cache
def server():
    """The one server of this test session."""
    quiet = {"CI": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | quiet | {"PYTHONPATH": str(ROOT), "TRL_EXPERIMENTAL_SILENCE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    atexit.register(stop, process)
    return process


def stop(process):
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


def run_jobs(*jobs):
    """Run jobs, one after the other, and return their exit codes; a job is what `job` made."""
    return ask(server().stdin, server().stdout, *jobs)


def ask(questions, answers, *jobs):
    """Have jobs run by who `answer`s at the other end of two streams."""
    questions.write(json.dumps(jobs) + "\n")
    questions.flush()
    return json.loads(answers.readline())


def answer(questions, answers):
    """Run the jobs that are asked for, and answer with their exit codes."""
    for line in questions:
        jobs, codes = json.loads(line), []
        if any(one["script"] == "grpo" for one in jobs):
            load_judges()
        for one in jobs:
            codes.append(code_of(start(one)))
        answers.write(json.dumps(codes) + "\n")
        answers.flush()


def job(script, arguments, log, environment=None, kill_at=None, kill_when=None, processes=1, folder=ROOT):
    """One training, by `sft`, `grpo` or the path of a script with `main`; or one `lmmixup`."""
    return {
        "script": str(script),
        "arguments": [str(argument) for argument in arguments],
        "log": str(log),
        "environment": environment or {},
        "kill_at": kill_at,
        "kill_when": str(kill_when or ""),
        "processes": processes,
        "folder": str(folder),
    }


def job_of(command, log, environment, **more):
    """The job of a command that `hf_lmmixup.training` would start."""
    return job(command[-3], command[-2:], Path(log).absolute(), environment, folder=Path.cwd(), **more)


def options(**values):
    """Command line options from keywords."""
    return [
        text
        for name, value in values.items()
        for text in (f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)]))
    ]


def failures(codes, *jobs):
    """The ends of the logs of those jobs that failed."""
    failed = [one["log"] for code, one in zip(codes, jobs, strict=True) if code]
    return "\n".join(f"{log}: {Path(log).read_text()[-6000:]}" for log in failed)


def train(one):
    """The body of a forked process."""
    import transformers

    faulthandler.dump_traceback_later(LIMIT, exit=True)
    if one["processes"] > 1:
        # They end by `_exit`: a trainer that is taken apart while its peer still talks to it may wait for ever.
        keep_all(transformers.Trainer)
    if one["kill_at"] is not None:

        class Kill(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == one["kill_at"]:
                    os.kill(os.getpid(), signal.SIGKILL)

        transformers.trainer.DEFAULT_CALLBACKS.append(Kill)
    if one["script"] in ("sft", "grpo"):
        from trl.scripts import grpo, sft

        script = {"sft": sft, "grpo": grpo}[one["script"]]
    else:
        spec = importlib.util.spec_from_file_location("script", one["script"])
        script = importlib.util.module_from_spec(spec)
        sys.modules["script"] = script
        spec.loader.exec_module(script)
    if hasattr(script, "make_parser"):
        script.main(*script.make_parser().parse_args_and_config(one["arguments"]))
    else:
        script.main(one["arguments"])


def command(one):
    """The body of a forked `lmmixup`; its trainings are forks of a twin, which has used no library yet."""
    from hf_lmmixup import training
    from hf_lmmixup.cli import app

    here, there = (end.makefile("rw") for end in socket.socketpair())
    if not os.fork():
        here.close()
        answer(there, there)
        os._exit(0)
    there.close()
    faulthandler.dump_traceback_later(LIMIT, exit=True)  # not sooner: a fork cannot end its parent's watch

    def run(command, log, environment, on_step):
        return ask(here, here, job_of(command, log, environment))[0]

    training._run = run
    assert not app(one["arguments"], standalone_mode=False)


def kill_when(folder):
    """Kill this process and its forks once a folder is there."""
    while not os.path.isdir(folder):
        time.sleep(0.005)
    os.killpg(0, signal.SIGKILL)


def keep_all(kind):
    """Keep the objects of a class alive."""
    kept, initialize = [], kind.__init__

    def __init__(self, *arguments, **options):
        kept.append(self)
        initialize(self, *arguments, **options)

    kind.__init__ = wraps(initialize)(__init__)


def leave_together():
    """Wait for the other processes: one that ends while another still receives leaves it waiting for ever."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def fork(one, rank, port):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(one["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        # The lock of progress bars is shared with all forks; one that is killed while it holds it stops the next ones.
        tqdm.set_lock(threading.RLock())
        os.environ.update(one["environment"])
        os.chdir(one["folder"])
        if one["processes"] > 1:
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": one["processes"], "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
        if one["kill_when"]:
            os.setsid()
            threading.Thread(target=kill_when, args=[one["kill_when"]], daemon=True).start()
        command(one) if one["script"] == "lmmixup" else train(one)
        if one["processes"] > 1:
            leave_together()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(one):
    """Start all processes of a job and return their ids."""
    port = free_port()
    return [fork(one, rank, port) for rank in range(one["processes"])]


def free_port():
    """A port that no other test is given before the processes meet there: systems hand out those above 32767."""
    for port in random.Random(os.getpid()).sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("None of 100 ports is free.")


def code_of(pids):
    """The exit code of the first process of a job that fails, or 0; the others, which wait for it, are killed."""
    running, code = set(pids), 0
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if not code and (code := os.waitstatus_to_exitcode(status)):
            for other in running:
                os.kill(other, signal.SIGKILL)
    return code


@cache
def load_judges():
    """Load encoder and bundled datastore once; the forks inherit them."""
    from hf_lmmixup.reward_settings import loaded_datastore

    os.environ["HF_LMMIXUP_DATASTORE"] = "bundled"
    loaded_datastore()
    del os.environ["HF_LMMIXUP_DATASTORE"]


def serve():
    import torch

    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    torch.set_num_threads(1)
    answer(sys.stdin, sys.stdout)


if __name__ == "__main__":
    serve()
