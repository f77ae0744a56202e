"""The rating command in miniature, for tests that kill it: rows in, `ratings.jsonl` out, the exit codes of `lmmixup`.

    python tests/rating_driver.py ROWS.jsonl DIRECTORY URL '{"concurrency": 16}'

Without arguments it reads such argument lists as JSON lines from stdin and runs each in a forked child, so that a test
of thirty kills imports everything once. For each child it prints two lines: its process id, then its wait status.
"""

import json
import logging
import os
import sys
from pathlib import Path

import aiohttp  # noqa: F401 -- imported before the forks
import openai
from datasets import Dataset

from hf_lmmixup.chat_model import ModelStopped
from hf_lmmixup.dispatch import TooManyRejects
from hf_lmmixup.endpoint import EndpointModel
from hf_lmmixup.rating import rate
from hf_lmmixup.records import LOADED


openai.resources.chat.completions  # noqa: B018 -- loads the parts that the client loads late


def main(rows_path, directory, url, settings="{}"):
    """Rate the rows and return the exit code."""
    options = {"model": "rater-8b", "backoff": 0.01, "timeout": 60.0, **json.loads(settings)}
    max_reject_rate = options.pop("max_reject_rate", 0.05)
    rows = [json.loads(line) for line in Path(rows_path).read_text().splitlines()]
    dataset = Dataset.from_list(rows, features=LOADED)
    code = 0
    try:
        model = EndpointModel(options.pop("model"), url, **options)
        outcome = rate(dataset, model, directory, max_reject_rate=max_reject_rate)
    except TooManyRejects as error:
        outcome, code = error.outcome, 4
        sys.stderr.write(f"{error}\n")
    except ModelStopped as error:
        sys.stderr.write(f"{error}\n")
        return 3
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    part = Path(directory) / "ratings.jsonl.part"
    part.write_text("".join(json.dumps(row) + "\n" for row in outcome.dataset))
    part.rename(part.with_suffix(""))
    return code


def run_forked(arguments, environment, log):
    """Run `main` in a child whose standard error goes to a file; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.environ.update(environment)
        sys.stderr = open(log, "w", buffering=1)
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, force=True)
        code = main(*arguments)
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve():
    """Run what stdin asks for, one child at a time is the caller's affair."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            sys.stdout.write(f"{status}\n")
        else:
            sys.stdout.write(f"{run_forked(**request)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) > 1 else serve())
