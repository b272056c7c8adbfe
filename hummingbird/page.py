"""A page in one file: elements that escape whatever they are given, and small charts in SVG.

Nothing here knows about clips. A page refers to nothing outside of itself and runs no script but the one that
it was made with; its policy (Content-Security-Policy) forbids both to whatever slips in. The same calls give
the same bytes.

Charts are drawn for cards of about 300 pixels and grow with them, so their text stays readable on a phone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Dot",
    "Html",
    "Mark",
    "bar",
    "columns_chart",
    "data_uri",
    "element",
    "histogram",
    "join",
    "number",
    "page",
    "scatter",
    "short",
    "table",
    "ticks",
]

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, those that turn the direction of writing, and halves of surrogate pairs."""

_VOID = frozenset({"br", "img", "meta"})

_WIDTH, _HEIGHT = 300, 160
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 10, 30, 20
"""Size of a chart and of the margins around its plot, in pixels."""

_TALL = 220
"""Height of a scatter chart."""

_LEAST = 0.4
"""Per cent of a bar's length: what there is at all can be seen."""

_LARGEST = 1e100
"""Values beyond are drawn as this one, and differences below its inverse are none: no sum overflows."""

_LETTER = 6.5
"""About the width of a letter, in pixels."""

_MAX_STRETCH = 2.5
"""An axis is lengthened up to so many times to show a mark; beyond, an arrow points to where it would be."""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def element(tag: str, /, *children: object, **attributes: object) -> Html:
    """An element; children that are not ``Html``, and all values of attributes, are escaped.

    Args:
        tag: name of the element.
        children: text or ``Html``; None is left out.
        attributes: ``class_`` becomes ``class``, ``font_size`` becomes ``font-size``; None is left out, True
            stands alone.
    """
    words = [tag]
    for key, value in attributes.items():
        if value is None:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{_escape(_text(value))}"')
    start = f"<{' '.join(words)}>"
    if tag in _VOID:
        return Html(start)
    return Html(f"{start}{join(*children)}</{tag}>")


def join(*children: object) -> Html:
    """Children side by side; what is not ``Html`` is escaped."""
    parts = (
        child if isinstance(child, Html) else _escape(_text(child)) for child in children if child is not None
    )
    return Html("".join(parts))


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _escape(text: str) -> str:
    return html.escape(_UNPRINTABLE.sub("\ufffd", text))


def short(text: str, limit: int) -> str:
    """Text of one line and at most ``limit`` characters."""
    text = " ".join(text[: 20 * limit].split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "\u2026"


def data_uri(content: bytes, kind: str) -> str:
    """A file inside a page.

    Args:
        content: the file.
        kind: its media type, such as ``video/mp4``.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def number(value: float) -> str:
    """A finite number for people: 1,234,567; 12.3; 0.0045."""
    if abs(value) < 1e15 and (value == int(value) or abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str | None = None) -> Html:
    """A table; the first cell of each row names the row, cells that are numbers stand at the right."""
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = [
        element("tr", element("th", first, scope="row"), *(_cell(cell) for cell in rest))
        for first, *rest in rows
    ]
    title = None if caption is None else element("caption", caption)
    return element("table", title, element("thead", top), element("tbody", *body))


def _cell(cell: object) -> Html:
    if isinstance(cell, (int, float)):
        return element("td", number(cell), class_="number")
    return element("td", cell)


# --- charts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A value to be drawn into a histogram.

    Attributes:
        label: its name.
        value: where.
        refuses: side of it that is shaded; empty for none.
    """

    label: str
    value: float
    refuses: str = ""


def bar(parts: Sequence[tuple[str, float]], total: float, label: str) -> Html:
    """A horizontal bar of any width.

    Args:
        parts: (class, length) from left to right.
        total: length of the full width; above 0.
        label: read out, and shown under the pointer.
    """
    left, rects = 0.0, []
    for kind, length in parts:
        share = 100 * length / total
        x = min(left, 100 - _LEAST)
        if length > 0:
            rects.append(
                element("rect", class_=kind, x=f"{x:.3f}%", width=f"{max(share, _LEAST):.3f}%", height=14)
            )
        left += share
    track = element("rect", class_="track", x=0, y=0, width="100%", height=14)
    return element("svg", element("title", label), track, *rects, class_="bar", role="img", aria_label=label)


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``most`` of them and about half as many at least."""
    if not high > low:
        return [low]
    rough = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def histogram(
    key: str,
    title: str,
    groups: Sequence[tuple[str, str, np.ndarray]],
    marks: Sequence[Mark] = (),
    *,
    num_bins: int = 36,
) -> Html:
    """A histogram of one quantity, groups stacked, with marks.

    The far ends of a long tail are counted in the outermost columns, which then carry a ``<`` or ``>``.

    Args:
        key: unique on the page; letters and digits.
        title: what is counted.
        groups: (name, class, values) from bottom to top; finite values, at least one in all.
        marks: thresholds.
    """
    everything = np.concatenate([values for _, _, values in groups])
    low, high, cut_low, cut_high = _range(everything.clip(-_LARGEST, _LARGEST))
    for mark in sorted(marks, key=lambda mark: abs(mark.value - low)):
        wider = min(low, mark.value), max(high, mark.value)
        if wider[1] - wider[0] <= _MAX_STRETCH * (high - low) or (
            high == low and abs(mark.value) <= _LARGEST
        ):
            low, high = wider
    if high == low:
        pad = 0.5 * abs(low) or 0.5
        low, high = low - pad if low else 0.0, high + pad
    edges = np.linspace(low, high, num_bins + 1)
    counts = [np.histogram(values.clip(low, high), edges)[0] for _, _, values in groups]
    plot = _Plot(low, high, float(np.sum(counts, axis=0).max()), whole=True)
    shapes = [*plot.shades(marks), *plot.grid()]
    for index in range(num_bins):
        below = 0
        says = [f"{number(float(edges[index]))} to {number(float(edges[index + 1]))}"]
        says += [
            f"{name} {count[index]:,}"
            for (name, _, _), count in zip(groups, counts, strict=True)
            if count[index]
        ]
        rects = []
        for (_, kind, _), count in zip(groups, counts, strict=True):
            if count[index]:
                rects.append(plot.column(edges[index], edges[index + 1], below, below + count[index], kind))
                below += int(count[index])
        if rects:
            shapes.append(element("g", element("title", ": ".join((says[0], ", ".join(says[1:])))), *rects))
    shapes += [*plot.marks(marks), *plot.axis(below=cut_low, above=cut_high)]
    says = [f"{name}: {len(values):,}" for name, _, values in groups]
    says.append(f"from {number(float(everything.min()))} to {number(float(everything.max()))}")
    says.append(f"median {number(float(np.quantile(everything, 0.5, method='lower')))}")
    says += [f"{mark.label} {number(mark.value)}" for mark in marks]
    return _chart(key, title, "; ".join(says), shapes)


def columns_chart(
    key: str,
    title: str,
    edges: np.ndarray,
    heights: np.ndarray,
    *,
    mean: float,
    unit: str,
    kind: str = "kept",
) -> Html:
    """Columns over an axis, with their mean as a line.

    Args:
        key: unique on the page; letters and digits.
        title: what is shown.
        edges: ``(n + 1,)`` ends of the columns on the axis, increasing.
        heights: ``(n,)`` at least 0.
        mean: where the line is drawn.
        unit: of the heights.
        kind: class of the columns.
    """
    plot = _Plot(float(edges[0]), float(edges[-1]), max(float(heights.max()), mean))
    shapes = plot.grid()
    for index, height in enumerate(heights):
        left, right = (number(float(edge)) for edge in edges[index : index + 2])
        says = f"{left} to {right}: {number(float(height))} {unit}"
        column = plot.column(edges[index], edges[index + 1], 0.0, float(height), kind)
        shapes.append(element("g", element("title", says), column))
    y = plot.y(mean)
    shapes.append(element("line", class_="mark", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y))
    label = f"mean {number(mean)} {unit}"
    shapes.append(element("text", label, class_="label", x=_WIDTH - _RIGHT, y=_TOP - 8, text_anchor="end"))
    says = f"{label}; at most {number(float(heights.max()))} {unit}"
    return _chart(key, title, says, [*shapes, *plot.axis()])


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One thing in a scatter chart.

    Attributes:
        label: its name.
        x, y: where; finite.
        low, high: ends of the interval around ``y``.
        area: share of the largest dot's area, in [0, 1].
    """

    label: str
    x: float
    y: float
    low: float
    high: float
    area: float = 1.0


def scatter(key: str, title: str, dots: Sequence[Dot], *, x_label: str, y_label: str) -> Html:
    """Dots with intervals over a logarithmic axis; the other one runs from 0 to 1.

    Args:
        key: unique on the page; letters and digits.
        title: what is shown.
        dots: at least one; ``x`` above 0, ``y`` in [0, 1].
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
    """
    logs = [math.log10(dot.x) for dot in dots]
    pad = max(0.12 * (max(logs) - min(logs)), 0.1)
    low, high = min(logs) - pad, max(logs) + pad
    bottom, left, right = _TALL - 34, _LEFT + 6, _WIDTH - _RIGHT

    def x_of(log: float) -> float:
        return round(left + (log - low) / (high - low) * (right - left), 2)

    def y_of(share: float) -> float:
        return round(bottom - share * (bottom - _TOP), 2)

    shapes = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = y_of(share)
        shapes.append(element("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        shapes.append(element("text", f"{share:.0%}", x=left - 5, y=y + 4, text_anchor="end"))
    shapes.append(element("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    for value in _log_ticks(10**low, 10**high):
        x = x_of(math.log10(value))
        shapes.append(element("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 3))
        shapes.append(element("text", _brief(value), x=x, y=bottom + 14, text_anchor="middle"))
    middle = (left + right) / 2
    shapes.append(element("text", x_label, x=middle, y=_TALL - 4, text_anchor="middle"))
    shapes.append(element("text", y_label, x=0, y=_TOP - 12))
    places = [
        (x_of(log), y_of(dot.y), 2.5 + 5.5 * math.sqrt(dot.area)) for dot, log in zip(dots, logs, strict=True)
    ]
    taken = [(x - size, y - size, x + size, y + size) for x, y, size in places]
    for dot, (x, y, size) in zip(dots, places, strict=True):
        says = (
            f"{dot.label}: {y_label} {dot.y:.1%} ({dot.low:.1%} to {dot.high:.1%}), {x_label} {number(dot.x)}"
        )
        shapes.append(
            element(
                "g",
                element("title", says),
                element("line", class_="whisker", x1=x, x2=x, y1=y_of(dot.low), y2=y_of(dot.high)),
                element("circle", class_="dot", cx=x, cy=y, r=round(size, 2)),
            )
        )
        shapes.append(_dot_label(short(dot.label, 22), x, y, size, taken))
    says = "; ".join(f"{dot.label}: {dot.y:.1%} at {number(dot.x)}" for dot in dots)
    return _chart(key, title, f"{y_label} against {x_label}: {says}", shapes, height=_TALL)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten within a range; fewer where they are many, ends where none is."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        inside = [float(f"{value:.6g}") for value in values if low <= value <= high]
        if len(inside) <= 7:
            break
    return inside[:: -(-len(inside) // 7)] if len(inside) > 1 else ticks(low, high, 4)


def _dot_label(
    text: str, x: float, y: float, size: float, taken: list[tuple[float, float, float, float]]
) -> Html:
    """The name of a dot at the first side of it where there is room."""
    width, gap = 1.15 * _LETTER * len(text), size + 3  # bold
    spots = [(x + gap, y + 4), (x - gap - width, y + 4)]
    spots += [(x - width / 2, y + sign * (gap + 6) + 4) for sign in (-1, 1)]
    spots += [(x + side, y + 4 + 13 * step) for step in (-1, 1, -2, 2, -3, 3) for side in (gap, -gap - width)]
    best: tuple[float, float, float] | None = None
    for left, base in spots:
        box = (left, base - 10, left + width, base + 2)
        clash = sum(
            max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
            * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
            for other in taken
        )
        clash += 100 * (max(0.0, _LEFT - box[0]) + max(0.0, box[2] - _WIDTH) + max(0.0, 12 - base))
        clash += 100 * max(0.0, base - (_TALL - 38))
        if best is None or clash < best[0]:
            best = (clash, left, base)
    assert best is not None
    _, left, base = best
    taken.append((left, base - 10, left + width, base + 2))
    is_left = left < x - gap - 0.9 * width
    place = {"x": round(left + width if is_left else left, 2), "y": round(base, 2)}
    return element("text", text, class_="label", text_anchor="end" if is_left else None, **place)


def _range(values: np.ndarray) -> tuple[float, float, bool, bool]:
    """Ends of an axis for values, and whether some of them lie beyond: long tails would squeeze the rest."""
    least, most = float(values.min()), float(values.max())
    if most - least <= 1e-6 * max(abs(least), abs(most), 1 / _LARGEST):
        middle = least if abs(least) > 1 / _LARGEST else 0.0
        return middle, middle, False, False
    low, high = (float(value) for value in np.quantile(values, (0.01, 0.99)))
    reach = 2.0 * (high - low)
    low = least if reach == 0 or least >= low - reach else low
    high = most if reach == 0 or most <= high + reach else high
    return low, high, least < low, most > high


class _Plot:
    """Places of values within a chart; the height grows up to the next tick."""

    def __init__(self, low: float, high: float, most: float, *, whole: bool = False) -> None:
        self._low, self._high = low, high
        if whole and most < 3:
            self._rows = [float(count) for count in range(int(most) + 1)]  # no half counts
        else:
            self._rows = ticks(0.0, most, 4) if most > 0 else [0.0, 1.0]
        if self._rows[-1] < most:
            self._rows.append(2 * self._rows[-1] - self._rows[-2])

    def x(self, value: float) -> float:
        return round(_LEFT + (value - self._low) / (self._high - self._low) * (_WIDTH - _LEFT - _RIGHT), 2)

    def y(self, value: float) -> float:
        return round(_HEIGHT - _BOTTOM - value / self._rows[-1] * (_HEIGHT - _BOTTOM - _TOP), 2)

    def column(self, left: float, right: float, below: float, above: float, kind: str) -> Html:
        x, top = self.x(left), self.y(above)
        width = round(max(self.x(right) - x - 1, 0.8), 2)
        # A single clip among a million must still be seen.
        height = round(max(self.y(below) - top, 1.0), 2)
        y = round(self.y(below) - height, 2)
        return element("rect", class_=kind, x=x, y=y, width=width, height=height)

    def grid(self) -> list[Html]:
        shapes = []
        for row in self._rows:
            y = self.y(row)
            shapes.append(element("line", class_="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y))
            shapes.append(element("text", _brief(row), x=_LEFT - 5, y=y + 4, text_anchor="end"))
        return shapes

    def shades(self, marks: Sequence[Mark]) -> list[Html]:
        """The sides that thresholds refuse."""
        shapes = []
        for mark in marks:
            left, right = (self._low, mark.value) if mark.refuses == "below" else (mark.value, self._high)
            if mark.refuses and self._low <= left < right <= self._high:
                x = self.x(left)
                size = {"width": round(self.x(right) - x, 2), "height": _HEIGHT - _TOP - _BOTTOM}
                shapes.append(element("rect", class_="refused", x=x, y=_TOP, **size))
        return shapes

    def marks(self, marks: Sequence[Mark]) -> list[Html]:
        shapes = []
        for row, mark in enumerate(sorted(marks, key=lambda mark: mark.value)):
            label = f"{mark.label} {number(mark.value)}"
            y = _TOP - 6 - 12 * (row % 2)
            x = self.x(min(max(mark.value, self._low), self._high))
            if mark.value > self._high:
                label += " \u2192"
            elif mark.value < self._low:
                label = f"\u2190 {label}"
            else:
                shapes.append(element("line", class_="mark", x1=x, x2=x, y1=y + 2, y2=_HEIGHT - _BOTTOM))
            # A label that would leave the picture hangs on its other end.
            anchor = "start" if x < _WIDTH / 2 else "end"
            if anchor == "start":
                x = min(x, max(0.0, _WIDTH - _LETTER * len(label)))
            shapes.append(element("text", label, class_="label", x=round(x, 2), y=y, text_anchor=anchor))
        return shapes

    def axis(self, *, below: bool = False, above: bool = False) -> list[Html]:
        y = _HEIGHT - _BOTTOM
        shapes = [element("line", class_="axis", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y)]
        for value in self._places():
            anchor = "end" if self.x(value) > _WIDTH - 2 * _RIGHT else "middle"
            x = min(self.x(value), _WIDTH - 1)
            shapes.append(element("text", _brief(value), x=x, y=y + 14, text_anchor=anchor))
        for sign, is_cut, value in (("<", below, self._low), (">", above, self._high)):
            if is_cut:
                x = self.x(value) + (4 if sign == ">" else -4)
                shapes.append(element("text", sign, class_="label", x=x, y=y - 4, text_anchor="middle"))
        return shapes

    def _places(self) -> list[float]:
        """As many round numbers as have room side by side."""
        for most in (7, 5, 4):
            places = ticks(self._low, self._high, most)
            if sum(len(_brief(value)) + 2 for value in places) * _LETTER < _WIDTH - _LEFT - _RIGHT:
                break
        return places


def _brief(value: float) -> str:
    """For the ticks of an axis: 1200000 is 1.2M."""
    if abs(value) >= 1e13:
        return f"{value:.1e}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if letter == "k" else size
            return f"{value / scale:.4g}{letter}"
    return f"{value:.6g}"


def _chart(
    key: str, title: str, description: str, shapes: Iterable[Html], *, height: float = _HEIGHT
) -> Html:
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-desc"),
        *shapes,
        class_="chart",
        viewBox=f"0 0 {_WIDTH} {height}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
    )


# --- the page ----------------------------------------------------------------------------------------------

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f8; --card: #ffffff; --ink: #16191d; --soft: #565d66; --line: #d9dde2; --track: #e9ecef;
  --kept: #1f6f8b; --dropped: #c77d0a; --error: #b3261e; --mark: #8a1c5b; --refused: #8a1c5b14;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111417; --card: #1a1e23; --ink: #e8eaed; --soft: #a3abb5; --line: #343a42; --track: #2a2f36;
    --kept: #5bb3d0; --dropped: #e0a346; --error: #f2857c; --mark: #f08cc0; --refused: #f08cc01f;
  }
}
* { box-sizing: border-box }
body {
  margin: 0 auto; padding: 1.5rem clamp(1rem, 3vw, 2.5rem) 4rem; max-width: 84rem; overflow-wrap: anywhere;
  background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
}
h1 { margin: 0; font-size: 1.6rem; line-height: 1.2 }
h2 { margin: 2.75rem 0 .25rem; font-size: 1.25rem }
h3 { margin: 0; font-size: 1rem; font-weight: 600 }
p { margin: .3rem 0; max-width: 48rem }
.soft { color: var(--soft); font-size: .875rem }
nav { margin: 1rem 0; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem }
a { color: var(--kept) }
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  margin: 1.25rem 0 }
.tile, .card {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem .9rem;
  min-width: 0;
}
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums }
.note { border-left: 4px solid var(--dropped); margin: .5rem 0 }
.cards { display: grid; gap: .9rem; margin: .9rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)) }
.chart { display: block; width: 100%; height: auto; margin: .35rem 0 }
.chart text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums }
.chart .label { fill: var(--mark); font-weight: 600 }
.kept { fill: var(--kept) } .dropped { fill: var(--dropped) } .error { fill: var(--error) }
.track { fill: var(--track) } .refused { fill: var(--refused) }
.grid { stroke: var(--line); stroke-width: .75 } .axis { stroke: var(--soft) }
.dot { fill: var(--kept); fill-opacity: .75 } .whisker { stroke: var(--soft); stroke-width: 1.25 }
.mark { stroke: var(--mark); stroke-width: 1.5; stroke-dasharray: 4 3 }
.bar { display: block; width: 100%; height: 14px; border-radius: 3px }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .4rem 0 }
.legend svg { width: 12px; height: 12px; margin-right: .4rem; vertical-align: -1px }
.steps { display: grid; gap: .1rem .9rem; grid-template-columns: 9rem 1fr minmax(6.5rem, auto);
  align-items: center; margin: .5rem 0 }
.steps .count { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.steps .why { grid-column: 2 / -1; margin: 0 0 .55rem; padding: 0; list-style: none }
.steps .why li { display: inline-block; margin-right: 1.1rem }
.bad { color: var(--error) }
figure.card { margin: 0; padding: 0; overflow: hidden } figcaption { padding: .6rem .8rem .75rem }
figcaption p { margin: .15rem 0 0 }
figure img { display: block; width: 100%; height: auto; background: var(--track) }
.missing { display: grid; place-items: center; aspect-ratio: 16 / 9; padding: 1rem; text-align: center;
  background: var(--track); color: var(--soft); font-size: .875rem }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 }
th, td { padding: .35rem .6rem .35rem 0; text-align: left; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid var(--line) }
caption { text-align: left; padding-bottom: .25rem; font-weight: 600 }
thead th { color: var(--soft); font-size: .875rem }
td .bar { margin-top: .25rem }
td p { margin: 0 0 .2rem }
h3 span { font-weight: 400 } .sheet { margin: 1.4rem 0 0 } .narrow { max-width: 32rem; margin: .6rem 0 }
.wide { margin: .9rem 0 }
.number { text-align: right; font-variant-numeric: tabular-nums }
dl { margin: .35rem 0 0 } dt { color: var(--soft); font-size: .8rem } dd { margin: 0 0 .35rem }
pre { white-space: pre-wrap; font-size: .8rem; margin: .5rem 0 0 } summary { cursor: pointer }
@media (max-width: 40rem) {
  .steps { grid-template-columns: 1fr auto; grid-auto-flow: dense }
  .steps .bar, .steps .why { grid-column: 1 / -1 }
  .steps .name { grid-column: 1 } .steps .count { grid-column: 2 }
}
@media print { body { background: none } figure, .card { break-inside: avoid } }
""".strip()


def page(title: str, *children: object, style: str = "", script: str = "", has_videos: bool = False) -> str:
    """A whole document, to be written as UTF-8.

    Args:
        title: of the document.
        children: its body.
        style: rules beside those that all pages have.
        script: the only one that will run, at the end of the body; trusted text of ours without ``</``.
        has_videos: whether videos inside the page may play.
    """
    # Of all that a page may load: this style and script, by their hashes, and pictures from within. No forms.
    style = f"{_STYLE}\n{style.strip()}" if style else _STYLE
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; base-uri 'none'; "
    policy += "form-action 'none'"
    if has_videos:
        policy += "; media-src data:"
    if script:
        assert "</" not in script
        policy += f"; script-src '{_hash(script)}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Html(style)),
    )
    body = element("body", *children, element("script", Html(script)) if script else None)
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
