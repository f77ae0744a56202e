"""The report: complete, readable without a network, and deaf to what stands in rows."""

import json
import re
from html.parser import HTMLParser

import pytest

from hf_lmmixup.report import render_report, save_report
from hf_lmmixup.training_figures import reward_edges


LEDGER = {
    "rows_in": 10,
    "kept": 3,
    "merged": 5,
    "dropped": {"load: empty completion": 2},
    "dropped_total": 2,
    "distilled_rows": 2,
    "notes": ["No distilled row scored 4 or more; the best 2 of 3 were kept by score instead."],
}
BARE = {"name": "bare", "ledger": LEDGER, "rows": {"in": 10, "out": 5, "original": 3, "distilled": 2}}
HISTORIES = {
    "cold start": [{"step": 10, "loss": 2.5, "mean_token_accuracy": 0.3}, {"step": 20, "loss": 1.25}],
    "GRPO": [
        {"step": step, "reward": 0.1 * step, "rewards/format_reward/mean": 0.5, "rewards/quality_reward/mean": None}
        for step in range(1, 11)
    ],
}
HELD_OUT = {
    "untrained": {"prompts": 45, "format": 0.0, "alignment": None, "quality": 0.011, "coverage": 0.0, "total": 0.02},
    "GRPO": {"prompts": 45, "format": 0.9778, "alignment": 0.1, "quality": 0.25, "coverage": 0.2, "total": 0.3},
}
HOSTILE = "</script><script>alert(1)</script>{{ 191 * 7 }}\u2028<img src=x onerror=alert(2)>\ud800"


def example(text="Why is there tides?"):
    return {
        "cluster_id": 4,
        "sources": [{"id": "5f1d0c8f1f0b7a52", "prompt": text, "completion": text, "score": 1}],
        "prompt": text,
        "completion": text,
        "reasoning": text,
        "score": None,
        "in_dataset": True,
    }


def full(**changes):
    return {
        **BARE,
        "recipe": {"limit": None, "name": "full", "rate": {"threshold": 4}},
        "versions": {"trl": "1.16.0"},
        "scores": {"before": {"1": 6, "4": 3, "none": 1}, "distilled": {"3": 2}, "after": {"3": 2, "4": 3}},
        "cluster_sizes": {"2": 1, "10": 2, "3": 1},
        "held_out": HELD_OUT,
        "histories": HISTORIES,
        "models": ["untrained", "cold start", "GRPO"],
        "examples": [example()],
        **changes,
    }


class Page(HTMLParser):
    """Elements and visible text of a page."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.scripts, self.stack = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.stack.append(tag)

    def handle_endtag(self, tag):
        self.stack.pop()

    def handle_data(self, data):
        (self.scripts if self.stack[-1:] == ["script"] else self.text).append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def test_the_page_says_what_happened_in_numbers():
    words = Page(render_report(full())).words
    for said in (
        "10 rows went in and 5 came out: 3 as they were and 2 distilled from 5 weak ones.",
        LEDGER["notes"][0],
        "load: empty completion",
        "0.00 → 0.98",  # the format reward, untrained and after GRPO
        "untrained → GRPO",
        "0.150 → 0.950",  # GRPO's total reward: means of the first two and the last two of ten steps
        "0.978",  # the same format reward in the table
        "trl 1.16.0",
    ):
        assert said in words, said


def test_the_ledger_adds_up_on_the_page():
    html = render_report(full())
    table = re.search(r'aria-label="Ledger">(.*?)</table>', html, re.S).group(1)
    counts = [int(number) for number in re.findall(r'class="number">(\d+)<', table)]
    assert counts == [3, 5, 2, 10]


def test_a_run_without_training_has_no_empty_sections():
    page = Page(render_report(BARE))
    titles = [attrs["id"] for tag, attrs in page.elements if tag == "h2"]
    assert titles == ["ledger", "rows", "recipe"]


def test_a_run_without_rows():
    ledger = {**LEDGER, "rows_in": 0, "kept": 0, "merged": 0, "dropped": {}, "notes": []}
    rows = {"in": 0, "out": 0, "original": 0, "distilled": 0}
    words = Page(render_report(full(ledger=ledger, rows=rows, scores={"before": {}}, held_out={}))).words
    assert "0 rows went in and 0 came out." in words


def test_texts_of_rows_stay_texts():
    plain = Page(render_report(full()))
    facts = full(
        name=HOSTILE, examples=[example(HOSTILE)], recipe={"input": HOSTILE}, held_out={HOSTILE: HELD_OUT["GRPO"]}
    )
    page = Page(render_report(facts))
    assert [tag for tag, _ in page.elements].count("script") == [tag for tag, _ in plain.elements].count("script")
    assert not any(tag == "img" for tag, _ in page.elements)
    assert "{{ 191 * 7 }}" in page.words and "1337" not in page.words
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)


def test_labels_of_the_map_hold_no_markup_of_rows():
    points = {"x": [0.1], "y": [0.2], "cluster": [4], "score": [None], "kind": ["source"], "text": [HOSTILE]}
    html = render_report(full(map=points))
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', html, re.S).group(1))
    label = next(figure for figure in drawn if figure["name"] == "map")["data"][0]["text"][0]
    assert label.startswith("<b>cluster 4, not judged</b><br>&lt;/script&gt;")
    assert set(re.findall(r"<[^>]*>", label)) == {"<b>", "</b>", "<br>"}


def test_everything_that_facts_can_hold_is_drawn():
    facts = full(
        map={"x": [0.1], "y": [0.2], "cluster": [4], "score": [1], "kind": ["source"], "text": ["Why?"]},
        transitions={"qa": {"classes": [0, 1], "matrix": [[0.9, 0.1], [0.2, 0.8]], "prior": [0.5, 0.5]}},
        arms=[{"arm": "distilled", "metric": "accuracy", "mean": 0.8, "low": 0.7, "high": 0.85, "seeds": 5}],
        costs=[{"stage": "rate", "seconds": 1.5, "rows": 10}, {"stage": "GRPO", "seconds": 60, "money": 0.25}],
    )
    page = Page(render_report(facts))
    titles = [attrs["id"] for tag, attrs in page.elements if tag == "h2"]
    assert titles == ["ledger", "rows", "distiller", "judge", "comparison", "cost", "clusters", "recipe"]
    for said in ("0.700 to 0.850", "61.5", "0.25", "Score transitions: qa", "Map of the clusters"):
        assert said in page.words, said


def test_words_that_were_added_or_left_out_are_marked():
    shown = example("Tides come from the Moon. Filler.")
    shown["completion"] = "Tides come from the Moon and the Sun."
    marks = re.findall(r'<mark class="(\w+)">([^<]*)</mark>', render_report(full(examples=[shown])))
    assert ("new", "Sun") in marks and ("left", "Tides") not in marks


def test_the_page_loads_nothing():
    page = Page(render_report(full()))
    policy = next(attrs for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    assert all(attrs.get("href", "data:,") == "data:," for tag, attrs in page.elements if tag == "link")
    assert not any("src" in attrs for _, attrs in page.elements)


def test_every_plot_has_its_data_and_its_table():
    html = render_report(full())
    page = Page(html)
    places = [attrs["id"] for tag, attrs in page.elements if attrs.get("class") == "plot"]
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', html, re.S).group(1))
    assert [f"plot-{figure['name']}" for figure in drawn] == places
    assert html.count('<details class="numbers"') == len(places) == 6


SYSTEMS = [
    {"system": "SFT", "rows": 9, "means": {"format": 0.5, "rouge_l": 0.25, "length": 80.0}},
    {"system": "GRPO", "rows": 9, "means": {"format": 1.0, "rouge_l": None, "length": 90.0}},
]


def drawn_on(html):
    """What the script of a page draws, by name."""
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', html, re.S).group(1))
    return {figure["name"]: figure for figure in figures}


def test_a_narrow_page_breaks_labels_and_lays_bars_down():
    ledger = {**LEDGER, "dropped": {"distill: answer has not the form of its task": 2}}
    html = render_report(full(ledger=ledger, mixture_test={"data": "t", "rows": 9, "systems": SYSTEMS}))
    figures = drawn_on(html)
    wide, narrow = (figure["data"][0]["node"] for figure in (figures["flow"], figures["flow"]["narrow"]))
    assert wide["label"][-1] == "distill: answer has not the form of its task"
    assert narrow["label"][-1] == "distill: answer<br>has not the<br>form of its<br>task"
    assert narrow["pad"] > wide["pad"]  # lines take room
    for name in ("held-out", "systems"):
        bars, lying = figures[name]["data"], figures[name]["narrow"]["data"]
        assert [(bar["x"], bar["y"]) for bar in bars] == [(bar["y"], bar["x"]) for bar in lying]
        assert all(bar["orientation"] == "h" and bar["hovertemplate"].startswith("%{y}: %{x:.3f}") for bar in lying)
    places = [attrs["style"] for _, attrs in Page(html).elements if attrs.get("class") == "plot"]
    assert all(re.fullmatch(r"--height: \d+px; --narrow: \d+px", style) for style in places)


def test_every_cell_of_a_wide_table_knows_its_column():
    html = render_report(full(mixture_test={"data": "t", "rows": 9, "systems": SYSTEMS}))
    table = next(part for part in html.split("<table")[1:] if ">system</th>" in part).partition("</table>")[0]
    assert table.startswith(' class="many">')  # more columns than a narrow page has room for: rows are stacked
    assert re.findall(r'data-column="([^"]*)"', table) == ["prompts", "format", "ROUGE-L", "length"] * 2


def test_the_keys_reach_every_point_of_the_map_cluster_by_cluster():
    kinds = ["source", "source", "source", "distilled", "distilled"]
    points = {"x": [0.1] * 5, "y": [0.2] * 5, "cluster": [4, 7, 4, 7, 4], "score": [1] * 5, "kind": kinds}
    html = render_report(full(map={**points, "text": list("abcde")}))
    figure = drawn_on(html)["map"]
    assert figure["steps"] and [trace["customdata"] for trace in figure["data"]] == [[4, 7, 4], [7, 4]]
    assert [len(trace["text"]) for trace in figure["data"]] == [3, 2]
    said = [attrs for tag, attrs in Page(html).elements if attrs.get("aria-live")]
    assert [attrs["id"] for attrs in said] == ["point-map"]


def test_every_link_of_the_page_has_its_place():
    page = Page(render_report(full()))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = [attrs["href"][1:] for tag, attrs in page.elements if attrs.get("href", "").startswith("#")]
    assert targets and set(targets) <= set(ids)


def test_equal_facts_give_equal_bytes():
    assert render_report(full()) == render_report(full())
    from_file = json.loads(json.dumps(full(), sort_keys=True))  # as `facts.json` of a run directory is written
    assert Page(render_report(from_file)).words == Page(render_report(full())).words


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([0.5], None),  # one logged step has no end
        ([0.1, 0.3], (0.1, 0.3, 1)),
        ([0, 0, 1, 1, 1, 1, 1, 1, 2, 4], (0, 3, 2)),  # a fifth of ten steps
        ([float("nan"), 0.2, None, 0.4], (0.2, 0.4, 1)),  # what was not judged is left out
    ],
)
def test_start_and_end_of_a_reward(values, expected):
    edges = reward_edges([{"step": step, "reward": value} for step, value in enumerate(values)])
    assert (edges and (edges.start, edges.end, edges.points)) == expected


def test_without_plotly_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r'pip install "hf-lmmixup\[report\]"'):
        render_report(BARE)


def test_a_page_that_does_not_fit_leaves_the_old_one(tmp_path):
    page = tmp_path / "report.html"
    save_report("old", page)
    with pytest.raises(UnicodeEncodeError):  # fails amid writing, as a full disk does
        save_report("x" * 100_000 + "\ud800", page)
    assert page.read_text() == "old" and list(tmp_path.iterdir()) == [page]
