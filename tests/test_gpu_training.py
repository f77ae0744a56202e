"""The benchmark for GPUs runs from end to end on a CPU with the tiny shape, and its parts add up."""

import re

import pytest
from trl_forks import failures, job, run_jobs


def test_the_benchmark_prints_both_tables_and_its_target(tmp_path):
    one = job(
        "benchmarks/gpu_training.py",
        ["--shape", "tiny", "--repeats", "1", "--length", "64", "--completions", "4", "--completion", "8"],
        tmp_path / "log",
        {"CUDA_VISIBLE_DEVICES": ""},
    )
    codes = run_jobs(one)
    assert not any(codes), failures(codes, one)
    log = (tmp_path / "log").read_text()
    assert re.search(r"\d{4}-\d\d-\d\d, CPU, 1 thread\(s\), shape tiny, random weights, torch ", log)
    for arm in ("full", "LoRA", "QLoRA"):
        assert re.search(rf"^\| {arm} \| [\d,]+ \([\d,]+-[\d,]+\) \| not known \|$", log, re.MULTILINE)
    rows = dict(re.findall(r"^\| ([a-z ]+) \| ([\d.]+) \| [\d.]+% \|$", log, re.MULTILINE))
    seconds = {name: float(value) for name, value in rows.items()}
    assert seconds["generation"] + seconds["rewards"] + seconds["loss and update"] == pytest.approx(
        seconds["step"], abs=0.002
    )
    assert re.search(
        r"^gpu_training rewards: ratio=0\.\d+ target<=0\.03 says nothing at this shape", log, re.MULTILINE
    )


def test_without_a_gpu_the_real_shape_is_refused(tmp_path):
    one = job("benchmarks/gpu_training.py", [], tmp_path / "log", {"CUDA_VISIBLE_DEVICES": ""})
    assert run_jobs(one) == [1]
    assert "There is no CUDA GPU here. `--shape tiny` runs" in (tmp_path / "log").read_text()
