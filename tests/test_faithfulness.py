import pytest
from datasets import Dataset

from hf_lmmixup.bundled import read_mini
from hf_lmmixup.distilled_rows import Distilled, distilled_dataset
from hf_lmmixup.faithfulness import INVENTED, LOST, NO_SOURCE, check_faithfulness
from hf_lmmixup.prompts import split_pair
from hf_lmmixup.records import DISTILLED, Distillation, TaskType


SOURCES = [
    {"id": "a", "prompt": "first Moon landing", "completion": "It was in 1969, by Apollo 11."},
    {"id": "b", "prompt": "who walked there", "completion": "Neil Armstrong walked first; see `moon.log`."},
]


def distilled(*answers, sources=("a", "b")):
    return distilled_dataset(
        [
            Distilled([{"id": one, "cluster_id": i, "prompt": "p"} for one in sources], Distillation("r", answer), "h")
            for i, answer in enumerate(answers)
        ],
        TaskType.QA,
        "test",
    )


GOOD = "Q: Who first walked on the Moon?\nA: Neil Armstrong walked first, in 1969, after the landing of Apollo 11."

CASES = [  # answer, unsupported facts, reason
    (GOOD, [], None),
    (GOOD.replace("1969", "1970"), ["1970"], None),  # one of six: below a quarter
    (GOOD.replace("Neil Armstrong", "Buzz Aldrin").replace("1969", "1970"), ["1970", "aldrin", "buzz"], INVENTED),
    ("Q: Who?\nA: Read `sun.log` first.", ["sun"], INVENTED),  # code counts: log is known, sun is not
    ("Q: Which flight?\nA: That is hard to say.", [], LOST),  # nothing is wrong and nothing is left
]


@pytest.mark.parametrize("answer, novel, reason", CASES)
def test_columns_and_filter(answer, novel, reason):
    rows = distilled(answer)
    kept = check_faithfulness(rows, Dataset.from_list(SOURCES), max_novelty=None, min_coverage=None)
    assert kept.dataset[0]["novel_facts"] == novel
    outcome = check_faithfulness(rows, Dataset.from_list(SOURCES))
    assert outcome.dropped == ({} if reason is None else {rows[0]["id"]: reason})
    assert len(outcome.dataset) == (reason is None)


def test_columns_are_added_to_those_of_a_distilled_row():
    outcome = check_faithfulness(distilled(GOOD), Dataset.from_list(SOURCES))
    assert set(outcome.dataset.features) == {*DISTILLED, "novelty", "novel_facts", "coverage"}
    assert outcome.dataset[0]["novelty"] == 0.0 and 0.5 < outcome.dataset[0]["coverage"] < 1.0


def test_what_cannot_be_judged_is_none_and_stays():
    rows = distilled("Q: what is it\nA: it is so", sources=["c"])
    outcome = check_faithfulness(rows, Dataset.from_list([{"id": "c", "prompt": "is it", "completion": "so"}]))
    assert outcome.dataset[0]["novelty"] is None and outcome.dataset[0]["coverage"] is None


def test_a_row_whose_source_is_gone_cannot_be_vouched_for():
    rows = distilled(GOOD)
    assert check_faithfulness(rows, Dataset.from_list(SOURCES[:1])).dropped == {rows[0]["id"]: NO_SOURCE}


def test_references_of_the_mini_are_faithful():
    results, sources = [], []
    for i, cluster in enumerate(read_mini("qa")):
        pairs = [split_pair(weak["text"]) or ("", weak["text"]) for weak in cluster["weak"]]
        rows = [{"id": f"{i}-{j}", "prompt": p, "completion": c, "cluster_id": i} for j, (p, c) in enumerate(pairs)]
        sources += rows
        results.append(Distilled(rows, Distillation(cluster["reasoning"], cluster["target"]), "h"))
    outcome = check_faithfulness(
        distilled_dataset(results, TaskType.QA, "mini"), Dataset.from_list(sources), max_novelty=0.0, min_coverage=0.6
    )
    assert outcome.dropped == {}


def test_no_rows_are_no_error_and_bounds_are_checked():
    assert len(check_faithfulness(distilled(), Dataset.from_list(SOURCES)).dataset) == 0
    with pytest.raises(ValueError, match="max_novelty=1.5 must lie between 0 and 1"):
        check_faithfulness(distilled(GOOD), Dataset.from_list(SOURCES), max_novelty=1.5)
