"""The environment under which the commands of this package run, the trainings that they start, and the rewards.

The libraries read it when they are loaded, so it is set before. What a user has set stays::

    command_environment = ENVIRONMENT | os.environ
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


ENVIRONMENT = {
    # Threads that spin for long while they wait make a tiny model 7 times slower beside one other busy process.
    "GOMP_SPINCOUNT": "10000",
}


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the length of a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
