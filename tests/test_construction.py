import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup import bundled
from hf_lmmixup.articles import MAX_WORDS, MIN_WORDS, Article, Segment, read_articles, segment
from hf_lmmixup.construction import construct
from hf_lmmixup.construction_plan import Plan, make_drafts
from hf_lmmixup.facts import novel_facts
from hf_lmmixup.near_duplicates import near_duplicates, shingles
from hf_lmmixup.offline_writer import OfflineWriter, extractive_score, halves
from hf_lmmixup.prompts import answer_matches
from hf_lmmixup.records import TaskType
from hf_lmmixup.target_checks import check_cluster, leaks, supported
from hf_lmmixup.wording import split_sentences


WHEN = "Q: When?\nA: In 1843, by Ada Lovelace."
LOST, COPIED = "facts missing from the variants", "target leaked into a variant"

FIELDS = ("Tides", "Glaciers", "Bridges", "Bread", "Caching", "Comets", "Chess", "Cheese", "Rivers", "Ships")


def articles(count=12, sections=6):
    """Articles of plain prose whose sections state different facts, so that no two texts are near-duplicates."""
    made = []
    for number in range(count):
        field = f"{FIELDS[number % len(FIELDS)]} {number}"
        parts = []
        for part in range(sections):
            words = [f"{w}{number}{part}" for w in ("alda", "berin", "corto", "delma", "eskol", "ferun")]
            text = (
                f"The {words[0]} of {field} moves about {100 + 7 * number + part} units a day. It was first described "
                f"by Lena Orbst{number}{part} in {1800 + number * 6 + part}. Because the {words[1]} is heavier than "
                f"the {words[2]}, the {words[3]} sinks and the {words[4]} rises. Without {words[5]} this would stop."
            )
            parts.append((f"{field}, part {part}", text))
        made.append(Article(field, tuple(parts), "test articles", "CC0-1.0"))
    return made


class LetterEncoder:
    """Unit vectors of letter counts: texts of one shape are close."""

    name, revision = "letters", None

    def encode(self, texts):
        counts = np.array([[text.lower().count(letter) for letter in "abcdefghijklmnop"] for text in texts], "float32")
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def all_clusters(made):
    return [(f, s, c) for f, splits in made.clusters.items() for s, clusters in splits.items() for c in clusters]


@pytest.fixture(scope="module")
def made():
    plan = Plan(fusion_similarity=(0.0, 1.0))
    return construct(segment(articles()).segments, OfflineWriter(), plan, encoder=LetterEncoder())


def test_every_cluster_is_sound(made):
    clusters = all_clusters(made)
    assert len(clusters) > 50
    assert {c["task_type"] for _, _, c in clusters} == {kind.value for kind in TaskType}
    for _, _, cluster in clusters:
        assert 2 <= len(cluster["sources"]) <= 20
        assert check_cluster(cluster["target"], cluster["sources"], cluster["task_type"]) is None
        assert not novel_facts(cluster["target"], cluster["sources"])
        assert cluster["target"] not in cluster["sources"] and cluster["reasoning"]
        assert cluster["source"] == "test articles (CC0-1.0)"
    assert made.fused > 5 and made.noisy > 20


def test_the_books_balance(made):
    assert made.count() + sum(made.dropped.values()) == len(segment(articles()).segments) == 72


def test_articles_never_stand_on_both_sides(made):
    sides = {s: {c["topic"] for _, split, c in all_clusters(made) if split == s} for s in ("train", "test")}
    assert sides["train"] and sides["test"] and not sides["train"] & sides["test"]
    texts = {s: [c["target"] for _, split, c in all_clusters(made) if split == s] for s in ("train", "test")}
    assert near_duplicates(texts["test"], texts["train"]) == {}


def test_fusion_takes_from_another_article_of_the_same_split():
    """The foreign sentence in a fused variant is one of another article's, and that article is on the same side."""
    plan = Plan(fusion_similarity=(0.0, 1.0), noise_share=0.0, task_types=(TaskType.QA,))
    made = construct(segment(articles()).segments, OfflineWriter(), plan, encoder=LetterEncoder())
    owner = {s[1:]: a.title for a in articles() for _, text in a.sections for s in split_sentences(text)}
    fused = 0
    for _, split, cluster in all_clusters(made):
        inside = {title for s, title in owner.items() for text in cluster["sources"] if s in text}
        strangers = inside - {cluster["topic"]}
        fused += bool(strangers)
        assert {plan.split_of(title) for title in strangers} <= {split}
    assert fused == made.fused > 5


def test_thirty_to_seventy(made):
    sizes = {(form, split): len(rows) for form, splits in made.clusters.items() for split, rows in splits.items()}
    for split in ("train", "test"):
        assert sizes["sft", split] == round(0.3 * (sizes["sft", split] + sizes["grpo", split]))


def test_the_same_input_gives_the_same_clusters_in_any_company():
    """Twice the same; and an article more moves no other article to another split, form of target or size."""
    segments = segment(articles()).segments
    plan = Plan(fusion_share=0.0)
    one, two = (construct(segments, OfflineWriter(), plan) for _ in range(2))
    assert json.dumps(one.clusters) == json.dumps(two.clusters)
    more = construct(segment(articles(13)).segments, OfflineWriter(), plan)
    split_one = {c["id"]: (s, c["target"], c["sources"]) for _, s, c in all_clusters(one)}
    split_more = {c["id"]: (s, c["target"], c["sources"]) for _, s, c in all_clusters(more)}
    assert all(split_more[key] == value for key, value in split_one.items())
    other = construct(segments, OfflineWriter(), replace(plan, seed=1))
    assert json.dumps(other.clusters) != json.dumps(one.clusters)


def test_a_test_target_that_repeats_a_train_target_is_dropped():
    """One article under two titles, on both sides of the split: the test side goes, counted."""
    plan = Plan()
    original = articles(1)[0]
    titles = [f"copy {number}" for number in range(50)]
    train, test = (next(t for t in titles if plan.split_of(t) == split) for split in ("train", "test"))
    both = [replace(original, title=title) for title in (train, test)]
    segments = [replace(part, text=f"{part.text} Note {part.article}.") for part in _segments_of_each(both)]
    made = construct(segments, OfflineWriter(), plan)
    assert made.dropped["test target nearly repeats a train target"] == 6
    assert {split for _, split, _ in all_clusters(made)} == {"train"}


def _segments_of_each(articles):
    return [part for article in articles for part in segment([article]).segments]


def test_low_rated_and_unwritable_targets_are_dropped_with_the_reason():
    class Picky(OfflineWriter):
        def targets(self, drafts):
            written = super().targets(drafts)
            written[0].score, written[1].text, written[1].reason = 3, None, "target: refusal"
            written[2].score = None
            return written

        def reasoning(self, clusters):
            return [None, *super().reasoning(clusters)[1:]]

    made = construct(segment(articles(3)).segments, Picky(), Plan())
    assert made.dropped["target rated below 4"] == made.dropped["target: refusal"] == made.dropped["not rated"] == 1
    assert made.dropped["no reasoning written"] == 1
    assert made.count() + sum(made.dropped.values()) == 18


@pytest.mark.parametrize(
    "target, variants, kind, reason",
    [
        # sound
        (WHEN, ["Q: when\nA: 1843", "Q: who\nA: by Ada Lovelace"], "qa", None),
        # a name is nobody's
        (WHEN, ["Q: when\nA: 1843", "Q: who\nA: Ada"], "qa", LOST),
        # a number is nobody's
        (WHEN, ["Q: when\nA: long ago", "Q: who\nA: Ada Lovelace"], "qa", LOST),
        # the words are nobody's
        ("Q: Why?\nA: Gravity pulls oceans toward bulges.", ["Q: why\nA: it does", "Q: tell\nA: so"], "qa", LOST),
        # the answer stands in a variant, with other case and marks
        (WHEN, ["so: in 1843 by ada lovelace!", "1843 Ada Lovelace"], "qa", COPIED),
        # one variant is no cluster, nor are two equal ones
        ("Q: When?\nA: In 1843.", ["1843 or so"], "qa", "fewer than two variants"),
        ("Q: When?\nA: In 1843.", ["1843 or so", "1843 or so"], "qa", "fewer than two variants"),
        # the target has another form
        ("In 1843.", ["in 1843 x", "1843"], "qa", "target not in the form of its task type"),
    ],
)  # fmt: skip
def test_check_cluster(target, variants, kind, reason):
    assert check_cluster(target, variants, kind) == reason


@pytest.mark.parametrize(
    "target, variant, leaked",
    [
        # nine words in ten, in one piece
        ("one two three four five six seven eight nine ten", "one two three four five six seven eight nine", True),
        # the same words, parted
        ("one two three four five six seven eight nine ten", "one two three four five x six seven eight nine", False),
        # the question alone is no leak
        ("Q: a b c\nA: d e f", "Q: a b c\nA: unknown", False),
        # a word that begins like the answer is another word
        ("Q: who\nA: Ada", "Q: who\nA: Adamson", False),
        ("Q: who\nA: Ada", "Q: who, ada?", True),
    ],
)
def test_leaks(target, variant, leaked):
    assert leaks(target, variant) is leaked


@pytest.mark.parametrize("cluster", bundled.mini_clusters()[::15], ids=lambda cluster: cluster["id"])
def test_halves_together_lack_nothing_and_alone_are_no_leak(cluster):
    first, second = (variant.text for variant in halves(cluster["target"]))
    assert supported(cluster["target"], [first, second])
    assert not leaks(cluster["target"], first) and not leaks(cluster["target"], second)


def test_no_near_duplicates_between_the_minis_splits():
    """Neither targets nor any other text of a held-out topic nearly repeats a train text."""
    train, test = ([row.text for row in bundled.rated_texts(split)] for split in ("train", "test"))
    assert near_duplicates(test, train) == {}
    targets = {s: [c["target"] for c in bundled.mini_clusters(split=s)] for s in ("train", "test")}
    assert near_duplicates(targets["test"], targets["train"], min_containment=0.2) == {}


def containment(one, other):
    """The definition, by plain loops."""
    mine, its = shingles(one), shingles(other)
    return sum(1 for shingle in mine if shingle in its) / min(len(mine), len(its)) if mine and its else 0.0


@given(st.lists(st.text("abc ", max_size=40), max_size=8), st.lists(st.text("abc ", max_size=40), max_size=8))
@settings(max_examples=100)
def test_near_duplicates_are_those_of_the_definition(texts, others):
    found = near_duplicates(texts, others)
    for number, text in enumerate(texts):
        shares = [containment(text, other) for other in others]
        if max(shares, default=0.0) >= 0.5:
            assert found[number] == shares.index(max(shares))
        else:
            assert number not in found


@pytest.mark.parametrize(
    "text, others, found",
    [
        ("The Moon pulls the oceans every day.", ["Indeed the moon pulls the oceans, every day, twice."], {0: 0}),
        ("a short one", ["A short one!"], {0: 0}),  # shorter than a shingle: whole
        ("the same field but quite another text", ["the same field with altogether different words"], {}),
        ("", [""], {}),
    ],
)
def test_near_duplicates(text, others, found):
    assert near_duplicates([text], others) == found


def test_segments_are_whole_and_bounded():
    long = " ".join(f"Sentence number {i} has exactly these eight words." for i in range(60))
    short = "Too short to keep."
    table = "| 1 | 2 |\n" * 40
    text = f"{long}\n\n{short}\n\n{table}"
    cut = segment([Article("A", (("A", text), ("B", long)), "s", "l")])
    assert all(MIN_WORDS <= len(part.text.split()) <= MAX_WORDS for part in cut.segments)
    assert " ".join(part.text for part in cut.segments) == long
    assert cut.dropped == {f"shorter than {MIN_WORDS} words": 1, "no prose": 1, "seen before": 3}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "x", "source": "s", "license": "l"}, "articles.jsonl:2: an article has 'title'"),  # no title
        ({"title": "t", "text": "x", "source": "s"}, "'license'"),  # no license
        ({"title": "t", "text": 5, "source": "s", "license": "l"}, "all of them text"),
        ({"title": "t", "sections": [], "source": "s", "license": "l"}, "articles.jsonl:2"),
        ({"title": "t", "sections": ["x"], "source": "s", "license": "l"}, "articles.jsonl:2"),
        ("not a row", "articles.jsonl:2: not a JSON object"),
    ],
)
def test_articles_that_cannot_be_read(row, message, tmp_path):
    good = {"title": "t", "sections": [{"title": "s", "text": "words"}], "source": "s", "license": "l"}
    path = tmp_path / "articles.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    rows = read_articles(path)
    assert next(rows) == Article("t", (("s", "words"),), "s", "l")
    with pytest.raises(ValueError, match=message):
        next(rows)


@pytest.mark.parametrize(
    "text, score",
    [
        # 25 words, two sentences, a number, an end
        (articles(1)[0].sections[0][1], 5),
        # no number, name or identifier
        ("The sea rises and falls twice a day because something pulls at it. " * 3, 4),
        # one short sentence without an end
        ("it moves", 1),
    ],
)
def test_extractive_score(text, score):
    assert extractive_score(text) == score


def test_targets_have_the_form_of_their_type():
    drafts = make_drafts(segment(articles()).segments, Plan())
    for target in OfflineWriter().targets(drafts):
        assert answer_matches(target.text, target.task_type), target.text
    alone = make_drafts(segment(articles(1, sections=1)).segments, Plan(task_types=(TaskType.MCQ,)))
    assert [target.task_type for target in OfflineWriter().targets(alone)] == [TaskType.QA]


def test_sizes_run_over_the_whole_range():
    sizes = [Plan().size_of(str(number)) for number in range(5000)]
    assert min(sizes) == 2 and max(sizes) == 20 and 3.5 < sum(sizes) / len(sizes) < 5
    assert {Plan(sizes=(2, 2)).size_of(str(n)) for n in range(50)} == {2}
    assert {Plan(size_decay=0.0).size_of(str(n)) for n in range(50)} == {2}


@pytest.mark.parametrize(
    "numbers, message",
    [
        ({"test_share": 1.0}, "test_share=1.0 must be at least 0 and below 1"),
        ({"sft_share": -0.1}, "sft_share=-0.1"),
        ({"sizes": (1, 5)}, "sizes=.1, 5. must be two numbers from 2 to 20"),
        ({"sizes": (2, 21)}, "sizes=.2, 21."),
        ({"task_types": ()}, "task_types is empty"),
    ],
)
def test_impossible_plans(numbers, message):
    with pytest.raises(ValueError, match=message):
        Plan(**numbers)


def test_draft_ids_tell_segments_apart():
    one = Segment("a", "t", "text", "s", "l")
    two = replace(one, article="b")
    assert len({draft.id for draft in make_drafts([one, two], Plan())}) == 2
