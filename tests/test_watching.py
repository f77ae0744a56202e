"""The monitor as a reward of weight 0: its numbers go to TRL's logging, its warnings to the log."""

import logging
from types import SimpleNamespace

import pytest

from hf_lmmixup.monitors import PATIENCE
from hf_lmmixup.observations import drain
from hf_lmmixup.prompts import format_completion
from hf_lmmixup.rewards import format_reward
from hf_lmmixup.watching import copy_rate_monitor, process_monitor


@pytest.fixture(autouse=True)
def fresh():
    drain()
    process_monitor.cache_clear()
    yield
    process_monitor.cache_clear()


SOURCES = [["the sea rises twice a day"], ["the sea rises twice a day"], [], ["tides come"]]
COMPLETIONS = [
    format_completion("why", "the sea rises twice a day"),  # every sequence of four words stands in its source
    format_completion("why", "the sea rises twice a week or so"),  # two of five do
    format_completion("why", "the sea rises twice a day"),  # no sources are known
    "the sea",  # too few words to tell
]


def test_values_and_numbers():
    metrics = {}
    format_reward(COMPLETIONS, sources=SOURCES)
    assert copy_rate_monitor(COMPLETIONS, sources=SOURCES, log_metric=metrics.__setitem__) == [1.0, 0.4, None, None]
    assert metrics["monitor/format"] == pytest.approx(0.375) and metrics["monitor/length"] > 0
    metrics.clear()
    copy_rate_monitor(COMPLETIONS, sources=SOURCES, log_metric=metrics.__setitem__)
    assert metrics == {}  # nothing was judged since


def test_without_sources_the_prompt_is_read():
    prompt = [{"role": "user", "content": "the sea rises twice a day\n\nMerge these."}]
    assert copy_rate_monitor(COMPLETIONS[:1], prompts=[prompt]) == [1.0]


@pytest.mark.parametrize(("main", "lines"), [(True, 1), (False, 0)])
def test_a_trouble_is_said_once_by_the_first_process(caplog, main, lines):
    state = SimpleNamespace(is_world_process_zero=main, global_step=7)
    with caplog.at_level(logging.WARNING, "hf_lmmixup.watching"):
        for _ in range(PATIENCE + 3):
            format_reward(["x"] * 4)
            copy_rate_monitor(["x"] * 4, trainer_state=state)
    assert [record.message.startswith("step 7: The reward 'format'") for record in caplog.records] == [True] * lines
