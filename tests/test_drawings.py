"""Drawings are well-formed SVG that loads nothing, and show the numbers of their figure."""

import xml.etree.ElementTree as ElementTree

import pytest

from hf_lmmixup.drawings import HEIGHT, WIDTH, draw
from hf_lmmixup.figures import Figure
from hf_lmmixup.run_figures import run_figures


SVG = "{http://www.w3.org/2000/svg}"
FACTS = {
    "scores": {"before": {"0": 3, "5": 1}, "after": {"5": 2}},
    "cluster_sizes": {"2": 4, "3": 1},
    "held_out": {"<b>&'\"": {"prompts": 3, "format": 0.5, "total": -0.25}},
    "histories": {
        "cold start": [{"step": 1, "loss": 2.0, "mean_token_accuracy": 0.1}, {"step": 2, "loss": 1.0}],
        "GRPO": [{"step": 3, "reward": 0.1, "rewards/format_reward/mean": 0.2}],
    },
}
FIGURES = {figure.name: figure for figure in run_figures(FACTS)}


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_drawings_are_well_formed_and_inside_their_frame(name):
    text = draw(FIGURES[name])
    root = ElementTree.fromstring(text)
    assert root.find(f"{SVG}title").text == FIGURES[name].title
    for shape in root.iter(f"{SVG}rect"):
        x, y, width, height = (float(shape.get(key)) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and height >= 0 and x + width <= WIDTH and y + height <= HEIGHT
    assert "href" not in text and "script" not in text and "url(" not in text
    assert draw(FIGURES[name]) == text


def test_bars_are_as_high_as_their_values():
    root = ElementTree.fromstring(draw(FIGURES["cluster-sizes"]))
    heights = [float(shape.get("height")) for shape in root.iter(f"{SVG}rect")]
    assert heights == [pytest.approx(4 * heights[1], abs=0.3), heights[1]]


@pytest.mark.parametrize(
    ("counts", "ticks"),
    [
        ([3, 1], ["0", "1", "2", "3", "4"]),
        ([27], ["0", "7", "14", "21", "28"]),
        ([4_999, 12], ["0", "1,250", "2,500", "3,750", "5,000"]),
        ([0], ["0", "1", "2", "3", "4"]),
        ([0.5, 1.0], ["0", "0.25", "0.5", "0.75", "1"]),
        ([12_345.6], ["0", "3,086", "6,173", "9,259", "12,346"]),
    ],
)
def test_ticks_of_counts_are_whole_numbers_without_exponents(counts, ticks):
    bars = {"type": "bar", "x": [f"{place}x" for place in range(len(counts))], "y": counts}
    texts = ElementTree.fromstring(draw(Figure("a", "A", "", [bars], {}, [], []))).iter(f"{SVG}text")
    assert [text.text for text in texts if text.get("text-anchor") == "end"] == ticks


def test_lines_go_through_their_points():
    line = ElementTree.fromstring(draw(FIGURES["loss-cold-start"])).find(f"{SVG}polyline")
    (first_x, first_y), (last_x, last_y) = (map(float, point.split(",")) for point in line.get("points").split())
    assert first_x < last_x and first_y < last_y  # the loss falls
