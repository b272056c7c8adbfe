"""Elements escape, charts say what they show, and a page lets nothing in from outside."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from hummingbird.page import (
    Dot,
    Html,
    Mark,
    bar,
    columns_chart,
    element,
    histogram,
    join,
    number,
    page,
    scatter,
    short,
    table,
    ticks,
)

HOSTILE = "</p><script>alert(1)</script> \"' onerror=x &amp; \u202egpj\x00\x1b[31m \ud800"


def drawn(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in drawn(svg).iter("text")]


def test_children_and_attributes_are_escaped_and_text_is_unchanged_otherwise() -> None:
    made = element("p", HOSTILE, title=HOSTILE, class_="x", hidden=True, lang=None)
    read: list[tuple[str, dict[str, str | None]]] = []
    said: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            read.append((tag, dict(attrs)))

        def handle_data(self, data: str) -> None:
            said.append(data)

    Reader().feed(made)
    clean = re.sub("[\u202e\x00\x1b\ud800]", "\ufffd", HOSTILE)
    assert read == [("p", {"title": clean, "class": "x", "hidden": None})]
    assert "".join(said) == clean
    made.encode("utf-8")


def test_only_markup_stays_markup() -> None:
    assert join("<b>", element("i", "x"), None, 3, 0.25) == "&lt;b&gt;<i>x</i>30.25"
    assert isinstance(join("<b>"), Html)
    assert element("br") == "<br>"
    assert element("svg", element("rect", stroke_width=2)) == '<svg><rect stroke-width="2"></rect></svg>'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (0.0045, "0.0045"),
        (12.345, "12.3"),
        (98765.4, "98,765"),
        (1e300, "1e+300"),
    ],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


def test_short_text_is_one_line() -> None:
    assert short("a\n b\tc", 10) == "a b c"
    assert short("x" * 1_000_000, 10) == "x" * 9 + "\u2026"


def test_a_table_names_its_rows_and_columns() -> None:
    made = table(("step", "rows"), [("<a>", 1200)], caption="c")
    assert '<th scope="row">&lt;a&gt;</th><td class="number">1,200</td>' in made
    assert '<caption>c</caption><thead><tr><th scope="col">step</th>' in made


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.0034, 0.0061), (-7.0, 12.5), (0.0, 1e6), (180.0, 1080.0), (1e300, 3e300)]
)
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    places = ticks(low, high)
    assert 3 <= len(places) <= 7
    assert low <= places[0] < places[-1] <= high
    steps = np.diff(places)
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:e}"[0] in "125"


def test_the_columns_of_a_histogram_hold_every_value_once() -> None:
    rng = np.random.default_rng(0)
    groups = [("kept", "kept", rng.normal(0, 1, 500)), ("dropped", "dropped", rng.normal(1, 1, 300))]
    svg = histogram("h", "score", groups, [Mark(label="max", value=2.0, refuses="above")])
    counted = {"kept": 0, "dropped": 0}
    for title in drawn(svg).iter("title"):
        for name, count in re.findall(r"(kept|dropped) ([\d,]+)", title.text or ""):
            counted[name] += int(count.replace(",", ""))
    assert counted == {"kept": 500, "dropped": 300}
    description = next(drawn(svg).iter("desc")).text or ""
    assert "kept: 500; dropped: 300" in description
    assert "max 2" in description


def rects(svg: str, kind: str) -> list[dict[str, float]]:
    found = [node for node in drawn(svg).iter("rect") if node.get("class") == kind]
    return [{name: float(node.get(name, "nan")) for name in ("x", "y", "width", "height")} for node in found]


def test_a_threshold_stands_where_its_value_is_and_shades_what_it_refuses() -> None:
    values = np.linspace(0.0, 10.0, 1001)
    svg = histogram("h", "score", [("kept", "kept", values)], [Mark(label="min", value=2.5, refuses="below")])
    line = next(node for node in drawn(svg).iter("line") if node.get("class") == "mark")
    columns = rects(svg, "kept")
    left, right = columns[0]["x"], max(rect["x"] + rect["width"] for rect in columns)
    assert float(line.get("x1", "nan")) == pytest.approx(left + 0.25 * (right - left), abs=1.0)
    shade = rects(svg, "refused")[0]
    assert shade["x"] == left
    assert shade["x"] + shade["width"] == pytest.approx(float(line.get("x1", "nan")), abs=0.01)
    assert "min 2.5" in texts(svg)


def test_a_threshold_far_outside_is_an_arrow_and_does_not_squeeze_the_columns() -> None:
    values = np.linspace(0.0, 1.0, 100)
    svg = histogram("h", "fps", [("kept", "kept", values)], [Mark(label="max", value=121.0, refuses="above")])
    assert "max 121 \u2192" in texts(svg)
    assert not [node for node in drawn(svg).iter("line") if node.get("class") == "mark"]
    assert len(rects(svg, "kept")) == 36


def test_a_long_tail_is_counted_in_the_last_column() -> None:
    values = np.concatenate([np.linspace(0.0, 1.0, 999), [1e9]])
    svg = histogram("h", "score", [("kept", "kept", values)])
    assert ">" in texts(svg)
    assert len(rects(svg, "kept")) > 30
    assert "from 0 to 1,000,000,000" in (next(drawn(svg).iter("desc")).text or "")


@pytest.mark.parametrize("value", [0.0, -3.0, 12.0, 1e300, 5e-324])
def test_equal_values_make_one_column(value: float) -> None:
    svg = histogram("h", "score", [("kept", "kept", np.full(5, value)), ("dropped", "dropped", np.empty(0))])
    assert len(rects(svg, "kept")) == 1
    assert "nan" not in svg
    assert "inf" not in svg


@pytest.mark.parametrize("values", [(-1.7e308, 1.7e308), (0.0, 5e-324), (1.0, 1.0 + 1e-12), (-1e-300, 1e300)])
def test_values_at_the_ends_of_what_a_float_holds_are_drawn(values: tuple[float, float]) -> None:
    marks = [
        Mark(label="max", value=1.7e308, refuses="above"),
        Mark(label="min", value=-1.0, refuses="below"),
    ]
    svg = histogram("h", "score", [("kept", "kept", np.array(values))], marks)
    assert 1 <= len(rects(svg, "kept")) <= 2
    for node in drawn(svg).iter():
        for name in ("x", "y", "x1", "x2", "y1", "y2", "width", "height"):
            assert -1 <= float(node.get(name, "0")) <= 300


def test_a_single_clip_among_a_million_is_still_drawn() -> None:
    values = np.concatenate([np.zeros(1_000_000), [1.0]])
    heights = [rect["height"] for rect in rects(histogram("h", "s", [("kept", "kept", values)]), "kept")]
    assert len(heights) == 2
    assert min(heights) >= 1


def test_columns_over_time_have_their_mean_as_a_line() -> None:
    svg = columns_chart(
        "c", "rate", np.array([0.0, 1.0, 2.0]), np.array([2.0, 6.0]), mean=4.0, unit="clips/s"
    )
    heights = [rect["height"] for rect in rects(svg, "kept")]
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.1)
    assert "mean 4 clips/s" in texts(svg)
    bottom = max(rect["y"] + rect["height"] for rect in rects(svg, "kept"))
    line = next(node for node in drawn(svg).iter("line") if node.get("class") == "mark")
    assert bottom - float(line.get("y1", "nan")) == pytest.approx(2 * heights[0], abs=0.1)


def test_every_chart_has_a_name_and_a_description() -> None:
    svg = drawn(histogram("h1", "<score>", [("kept", "kept", np.arange(3.0))]))
    assert svg.get("role") == "img"
    assert svg.get("aria-labelledby") == "h1-title h1-desc"
    assert {node.get("id"): node.text for node in svg if node.get("id")}["h1-title"] == "<score>"
    small = drawn(bar([("kept", 3), ("dropped", 1)], 4, "3 of 4"))
    assert (small.get("aria-label"), small[0].text) == ("3 of 4", "3 of 4")
    assert [rect.get("width") for rect in small.iter("rect")] == ["100%", "75.000%", "25.000%"]


def test_one_of_a_million_is_seen_at_the_end_of_a_bar() -> None:
    last = list(drawn(bar([("kept", 999_999), ("error", 1)], 1_000_000, "x")).iter("rect"))[-1]
    assert (last.get("class"), last.get("x"), last.get("width")) == ("error", "99.600%", "0.400%")


def test_the_policy_allows_this_style_and_pictures_from_within_only() -> None:
    document = page("<title>", element("p", "x"))
    style = re.search(r"<style>(.*)</style>", document, re.DOTALL)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', document)
    assert style
    assert policy
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    rules = policy[1].replace("&#x27;", "'").split("; ")
    assert rules == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "<title>&lt;title&gt;</title>" in document


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_contrast_in_light_and_dark() -> None:
    """WCAG 2.2: text 4.5 to 1 (1.4.3), parts of charts 3 to 1 (1.4.11)."""
    schemes = re.findall(r":root \{(.*?)\}", page("x"), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", scheme))
        for name, least in (
            ("ink", 4.5),
            ("soft", 4.5),
            ("mark", 4.5),
            ("error", 4.5),
            ("kept", 4.5),
            ("dropped", 3),
        ):
            for ground in ("page", "card"):
                light, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= least, (name, ground, colours)


def test_dots_stand_where_their_values_are_and_names_do_not_cover_each_other() -> None:
    dots = [Dot(label=f"m{i}", x=10.0**i, y=i / 2, low=0.0, high=1.0, area=1 / 4**i) for i in range(3)]
    dots += [Dot(label="same", x=10.0, y=0.5, low=0.4, high=0.6)]
    root = drawn(scatter("s", "Accuracy", dots, x_label="seconds", y_label="share"))
    circles = [{key: float(node.get(key) or 0) for key in ("cx", "cy", "r")} for node in root.iter("circle")]
    assert circles[1]["cx"] - circles[0]["cx"] == pytest.approx(circles[2]["cx"] - circles[1]["cx"], abs=0.02)
    assert circles[0]["cy"] - circles[1]["cy"] == pytest.approx(circles[1]["cy"] - circles[2]["cy"], abs=0.02)
    assert circles[0]["r"] > circles[1]["r"] > circles[2]["r"]
    lines = [node for node in root.iter("line") if node.get("class") == "whisker"]
    assert float(lines[3].get("y1") or 0) - float(lines[3].get("y2") or 0) == pytest.approx(
        0.2 * (circles[0]["cy"] - circles[2]["cy"]), abs=0.02
    )
    names = {node.text: node for node in root.iter("text") if node.get("class") == "label"}
    assert set(names) == {"m0", "m1", "m2", "same"}
    assert (names["m1"].get("x"), names["m1"].get("y")) != (names["same"].get("x"), names["same"].get("y"))
    axis = [node.text for node in root.iter("text") if node.get("text_anchor") != "end"]
    assert {"1", "10", "100"} <= set(axis)


def test_one_dot_has_an_axis_around_it() -> None:
    svg = scatter("s", "t", [Dot(label="a", x=3.3, y=1.0, low=0.9, high=1.0)], x_label="s", y_label="y")
    assert len(texts(svg)) >= 9
    assert "nan" not in svg


def test_a_page_with_a_script_and_videos_allows_these_only() -> None:
    script = "document.title = 'ran';"
    made = page("t", element("p", "x"), style="p { color: red }", script=script, has_videos=True)
    wanted = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made)
    assert policy is not None
    said = policy[1].replace("&#x27;", "'")
    assert f"script-src 'sha256-{wanted}'" in said
    assert "media-src data:" in said
    assert "default-src 'none'" in said
    assert f"<script>{script}</script></body>" in made
    style = re.search(r"<style>(.*?)</style>", made, flags=re.DOTALL)
    assert style is not None
    assert base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in said
    assert "script-src" not in page("t")
    assert "media-src" not in page("t")
    with pytest.raises(AssertionError):
        page("t", script="'</script>'")
