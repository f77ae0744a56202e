import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup import bundled
from hf_lmmixup.coverage import measure_coverage


SOURCES = [
    "Q: aqueduct?\nA: Romans built it, water flows down a gentle slope.",
    "Q: how long was it\nA: about 50 km, Pont du Gard carries the water of Nimes over a river",
]
WHOLE = (
    "Q: How did the Nimes aqueduct work?\nA: Romans let water flow down a gentle slope for 50 km; "
    "the Pont du Gard carries it over a river."
)


def test_a_whole_answer_keeps_nearly_everything():
    found = measure_coverage(WHOLE, SOURCES)
    assert found.kept > 0.85 and found.supported == 1.0 and found.sources == 1.0


WORSE = [
    # what is wrong, answer
    ("the number is lost", WHOLE.replace(" for 50 km", "")),
    ("the names are lost", WHOLE.replace("the Pont du Gard", "a bridge").replace("Nimes", "town")),
    ("a number is invented", WHOLE + " It cost 300 talents."),
    ("a name is invented", WHOLE + " It was planned by Agrippa."),
    ("one source is ignored", "Q: What is an aqueduct?\nA: Romans built it so that water flows down a gentle slope."),
    ("another subject", "Q: What do bees do?\nA: They carry pollen from flower to flower, which feeds us all."),
    ("nothing", ""),
]


@pytest.mark.parametrize(("fault", "answer"), WORSE)
def test_an_answer_that_loses_or_invents_has_less(fault, answer):
    assert measure_coverage(answer, SOURCES).value < measure_coverage(WHOLE, SOURCES).value - 0.01


def test_the_references_of_mixture_cover_their_clusters():
    for cluster in bundled.mini_clusters():
        sources = [weak["text"] for weak in cluster["weak"]]
        whole = measure_coverage(cluster["target"], sources)
        half = measure_coverage(cluster["target"][: len(cluster["target"]) // 2], sources)
        invented = measure_coverage(cluster["target"] + " In 1973 Robert Kowalski found 88 percent.", sources)
        assert whole.value > max(half.value, invented.value) and whole.supported == 1.0


def test_sources_without_facts_cannot_be_covered():
    assert measure_coverage("anything", []) is None
    assert measure_coverage("anything", ["", "...", "of the"]) is None


@settings(deadline=None)
@given(st.text(max_size=300), st.lists(st.text(max_size=200), max_size=3))
def test_shares_stay_between_0_and_1(answer, sources):
    found = measure_coverage(answer, sources)
    if found is not None:
        assert all(0 <= share <= 1 for share in (found.kept, found.supported, found.sources, found.value))
