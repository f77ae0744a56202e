import logging
from types import SimpleNamespace

import numpy as np
import pytest

from hf_lmmixup import observations
from hf_lmmixup.monitors import (
    BASELINE_STEPS,
    PATIENCE,
    Limits,
    RewardMonitor,
    copy_rate,
    correlation,
    monitor_callback,
    step_numbers,
)
from hf_lmmixup.observations import KEPT, Observation, drain, record
from hf_lmmixup.prompts import format_completion


def call(reward, values, answers=None, sources=None, faults=None):
    answers = answers or [f"Q: what is number {row}\nA: it is {row} and no other" for row in range(len(values))]
    texts = [format_completion("why", answer) for answer in answers]
    return Observation(reward, texts, sources or [[]] * len(values), values, faults or [None] * len(values))


def test_the_numbers_of_a_step():
    answers = ["the sea rises twice a day", "the sea rises twice a day", "bees dance in dark hives now"]
    numbers = step_numbers(
        [
            call(
                "quality", [1.0, 0.0, None], answers, [["the sea rises twice a week"]] * 3, [None, None, "malformed"]
            ),
            call("coverage", [0.9, 0.1, 0.5], answers),
        ]
    )
    assert numbers["quality"] == 0.5 and numbers["coverage"] == pytest.approx(0.5)
    assert numbers["quality_abstained"] == pytest.approx(1 / 3) and numbers["coverage_abstained"] == 0
    assert numbers["quality_guarded"] == pytest.approx(1 / 3)
    assert numbers["length"] == 6
    assert numbers["copy_rate"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert numbers["distinct_2"] == pytest.approx(10 / 15)
    assert "quality~coverage" not in numbers  # two rows are too few for a correlation
    assert step_numbers([]) == {}


def test_correlation_is_taken_over_rows_that_both_judged():
    first, second = [0.0, 0.5, 1.0, None], [0.1, 0.2, 0.9, 0.0]
    assert correlation(first, second) == pytest.approx(np.corrcoef([0, 0.5, 1], [0.1, 0.2, 0.9])[0, 1])
    assert correlation([1.0] * 4, second) is None  # constant
    assert correlation(first, [1.0]) is None  # of different calls


def test_copy_rate():
    assert copy_rate("one two three four five", ["one two three four six"]) == 0.5
    assert copy_rate("too short", ["too short"]) is None


def watched(steps, limits=None):
    monitor = RewardMonitor(limits or Limits())
    said = []
    for step in steps:
        monitor.observe(step)
        said += monitor.troubles()
    return said


def even(**rewards):
    return [call(name, values) for name, values in rewards.items()]


MIXED = [0.0, 1.0, 0.5, 0.5]

TROUBLES = [
    # what happens, steps, words of the one warning
    ("saturation", [even(format=[1.0] * 4)] * (PATIENCE + 3), "'format' has been 1.00 or more for 5 steps"),
    ("starvation", [even(quality=[0.0] * 4)] * (PATIENCE + 3), "'quality' has been 0.00 or less for 5 steps"),
    ("abstention", [even(quality=[None, None, None, 0.5])] * 3, "'quality' abstains on 75% of the completions"),
    (
        "length",
        [even(quality=MIXED)] * BASELINE_STEPS
        + [[call("quality", MIXED, [" ".join(f"w{row}x{n}" for n in range(40)) for row in range(4)])]] * PATIENCE,
        "Answers went from 12 to",
    ),
    (
        "copying",
        [[call("quality", MIXED, ["a b c d e"] * 4, [["x y z"]] * 4)]] * BASELINE_STEPS
        + [[call("quality", MIXED, ["a b c d e"] * 4, [["a b c d e"]] * 4)]] * PATIENCE,
        "copies instead of merging",
    ),
    (
        "variety",
        [[call("quality", MIXED, [f"a{row} b{row} c{row} d{row}" for row in range(4)])]] * BASELINE_STEPS
        + [[call("quality", MIXED, ["a b c d"] * 4)]] * PATIENCE,
        "Distinct word pairs fell from 1.00 to",
    ),
    (
        "disagreement",
        [even(quality=[0.0, 0.3, 1.0, 0.3], coverage=[0.9, 0.5, 0.1, 0.6])] * PATIENCE,
        "'quality' and 'coverage' pull in opposite directions",
    ),
]


@pytest.mark.parametrize(("what", "steps", "words"), TROUBLES, ids=[row[0] for row in TROUBLES])
def test_a_trouble_is_said_once_with_a_remedy(what, steps, words):
    [text] = watched(steps)
    assert words in text and len(text.split(". ")) + len(text.split(": ")) > 2


def test_a_healthy_run_is_silent():
    assert watched([even(quality=MIXED, coverage=[0.1, 0.8, 0.4, 0.6])] * 30) == []
    assert RewardMonitor().troubles() == []


def test_limits_can_be_moved():
    steps = [even(format=[0.9] * 4)] * PATIENCE
    assert watched(steps) == [] and len(watched(steps, Limits(saturated=0.8))) == 1


def test_what_nobody_reads_is_forgotten():
    drain()
    for number in range(KEPT + 3):
        record(call("quality", [float(number)]))
    assert [entry.values[0] for entry in drain()] == list(range(3, KEPT + 3))
    assert drain() == []


def test_the_callback_reads_the_rewards_after_each_step(caplog):
    from transformers import TrainerCallback

    callback = monitor_callback(Limits(saturated=0.5))
    assert isinstance(callback, TrainerCallback)
    state = SimpleNamespace(log_history=[], global_step=0)
    observations.record(call("stale", [1.0]))
    callback.on_train_begin(None, state, None)
    with caplog.at_level(logging.WARNING):
        for step in range(1, PATIENCE + 2):
            state.global_step = step
            observations.record(call("format", [1.0, 1.0]))
            callback.on_step_end(None, state, None)
            observations.record(call("held_out", [0.0]))
            callback.on_evaluate(None, state, None)
        callback.on_step_end(None, state, None)  # a step without rewards adds nothing
    assert [entry["step"] for entry in state.log_history] == [1, 2, 3, 4, 5, 6]
    assert state.log_history[0]["monitor/format"] == 1.0 and "monitor/stale" not in state.log_history[0]
    assert "monitor/held_out" not in state.log_history[1]
    [warning] = [entry.getMessage() for entry in caplog.records if entry.name == "hf_lmmixup.monitors"]
    assert warning.startswith("step 5: The reward 'format'")
