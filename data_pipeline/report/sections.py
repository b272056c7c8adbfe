"""The parts of the page: each takes what was read, and gives its piece of the page."""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.journal import read_values
from data_pipeline.pipeline import PipelineConfig
from data_pipeline.progress import PACE_FILE, Pace, read_pace
from data_pipeline.report.survey import Survey
from hummingbird.manifest import SCORES, STATUSES
from hummingbird.page import (
    Html,
    Mark,
    bar,
    columns_chart,
    element,
    histogram,
    join,
    number,
    page,
    short,
    table,
)

__all__ = ["SPANS", "Run", "Sheet", "whole_page"]

SPANS = ("duration_s", "short_side", "fps")
"""Measures of a clip that are no scores, but have thresholds."""

_MAX_CAPTION, _MAX_DETAIL, _MAX_NAME = 240, 200, 120
_MAX_REASONS_OF_A_STEP, _MAX_ROWS = 12, 30
_MAX_PHASES, _MAX_COLUMNS = 12, 40
_MAX_SETTINGS_BYTES = 20_000

_TOP_PERCENT = "below top percent"
"""The one reason of a stage that is decided after all others."""

_WORDS = {"kept": "kept", "dropped": "dropped", "error": "errors"}


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A contact sheet.

    Attributes:
        rows: numbers of the rows shown, in their order.
        of: how many there are.
    """

    title: str
    about: str
    rows: list[int]
    of: int


@dataclass(kw_only=True)
class Run:
    """Everything that the page is made from.

    Attributes:
        output: folder of the run.
        config: the run's settings, or the defaults where they cannot be read.
        marks: thresholds by score.
        sheets: contact sheets.
        errors: numbers of the rows shown of each cause of an error, by the cause's number.
        captions: numbers of the rows whose captions are shown.
        rows: all rows that are shown, by number.
        pictures: JPEG files, or why there is none, by row.
        notes: what the page lacks, and why.
    """

    output: Path
    survey: Survey
    config: PipelineConfig
    marks: dict[str, list[Mark]]
    sheets: list[Sheet]
    errors: dict[int, list[int]]
    captions: list[int]
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[int, bytes | str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def whole_page(run: Run) -> str:
    """The document."""
    found = run.survey
    sheets = [_sheet(run, sheet) for sheet in run.sheets] or [_nothing("no clips")]
    sections = [
        _section("funnel", "From sources to clips", _funnel(run)),
        _section("scores", "Scores and thresholds", _histograms(run)),
        _section("clips", "Clips", *sheets),
        _section("captions", "Captions", _captions(run)),
        _section("errors", "Errors by cause", _errors(run)),
        _section("speed", "Throughput", _speed(run)),
    ]
    names = ("funnel", "scores", "clips", "captions", "errors", "speed")
    labels = ("Funnel", "Scores", "Clips", "Captions", "Errors", "Throughput")
    links = [element("a", label, href=f"#{name}") for name, label in zip(names, labels, strict=True)]
    num_clips = int(found.is_clip.sum())
    kept = found.count("kept")
    tiles = [
        ("sources", number(found.num_sources), ""),
        ("clips found", number(num_clips), _length(sum(found.seconds.values()))),
        ("kept", number(kept), f"{_share(kept, num_clips)} of the clips, {_length(found.seconds['kept'])}"),
        ("dropped", number(found.count("dropped")), ""),
        ("errors", number(found.count("error")), ""),
        ("shards", number(found.num_shards), ""),
    ]
    name = run.output.resolve().name
    return page(
        f"Curation report: {name}",
        element(
            "header",
            element("h1", "Curation report"),
            element(
                "p",
                f"Run in {name}" + (f", input {run.config.input}" if run.config.input else ""),
                class_="soft",
            ),
            element("nav", *links, aria_label="Sections"),
        ),
        element(
            "main",
            element("div", *(_tile(*tile) for tile in tiles), class_="tiles"),
            *(element("p", short(note, 400), class_="card note") for note in run.notes),
            *sections,
            _settings_text(run),
        ),
    )


def _tile(label: str, value: str, more: str) -> Html:
    return element("div", element("b", value), label, element("div", more, class_="soft"), class_="tile")


def _section(name: str, title: str, *children: object) -> Html:
    return element("section", element("h2", title), *children, id=name)


def _nothing(text: str) -> Html:
    return element("p", text[:1].upper() + text[1:] + ".", class_="soft")


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _length(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def _funnel(run: Run) -> Html:
    """How many are left after each step, and why the others are not."""
    found = run.survey
    num_clips = int(found.is_clip.sum())
    of_sources = _lost(found, ~found.is_clip)
    of_clips = _lost(found, found.is_clip)
    unreadable = of_sources.pop("ingest", [])
    clipless = [cause for causes in of_sources.values() for cause in causes]
    order = [*(stage.name for stage in run.config.stages), _TOP_PERCENT, "write"]
    # Failures of whole tasks ("score"), and stages that this version does not know, come before the last.
    order[-1:-1] = sorted(set(of_clips) - set(order))
    sources = [("sources", []), ("readable", unreadable), ("with clips", clipless)]
    clips = [("clips", []), *((f"after {stage}", of_clips.get(stage, [])) for stage in order)]
    if _TOP_PERCENT not in of_clips:
        clips = [step for step in clips if step[0] != f"after {_TOP_PERCENT}"]
    return join(
        _legend("left", "dropped here", "errors here"),
        _steps(sources, found.num_sources),
        _steps(clips, num_clips),
    )


def _steps(steps: Sequence[tuple[str, Sequence[tuple[str, str, int]]]], total: int) -> Html:
    """Lines of the funnel, from a number down to what is left of it."""
    parts, left = [], total
    for label, causes in steps:
        parts.append(_step(label, left, total, causes))
        left -= sum(count for _, _, count in causes)
    return element("div", *parts, class_="steps card")


def _lost(found: Survey, chosen: np.ndarray) -> dict[str, list[tuple[str, str, int]]]:
    """(status, what, rows) of the chosen rows that were not kept, by the stage that the reason names."""
    lost: dict[str, list[tuple[str, str, int]]] = {}
    counts = np.bincount(found.cause[chosen], minlength=len(found.causes))
    for (status, reason), count in zip(found.causes, counts.tolist(), strict=True):
        if status == "kept" or not count:
            continue
        stage, separator, what = reason.partition(": ")
        if not separator:
            stage, what = "other", reason or "no reason given"
        stage = what if what == _TOP_PERCENT else short(stage, 40)
        lost.setdefault(stage, []).append((status, what, count))
    return lost


def _step(label: str, before: int, total: int, causes: Sequence[tuple[str, str, int]]) -> Html:
    """One line of the funnel, and under it why things were lost there."""
    by_status = {
        status: sum(count for one, _, count in causes if one == status) for status in ("dropped", "error")
    }
    left = before - sum(by_status.values())
    says = f"{label}: {left:,} of {total:,}"
    parts = [("kept", left), ("dropped", by_status["dropped"]), ("error", by_status["error"])]
    why = []
    by_count = sorted(causes, key=lambda cause: (-cause[2], cause[1]))
    for status, what, count in by_count[:_MAX_REASONS_OF_A_STEP]:
        text = f"{short(what, _MAX_NAME)} {count:,}"
        why.append(element("li", f"{text} (error)" if status == "error" else text, class_=_bad(status)))
    if len(causes) > len(why):
        why.append(element("li", f"and {len(causes) - len(why):,} other reasons"))
    share = element("span", f" {_share(left, total)}", class_="soft") if total else None
    return join(
        element("div", label, class_="name"),
        bar(parts, max(total, 1), says),
        element("div", f"{left:,}", share, class_="count"),
        element("ul", *why, class_="why soft") if why else None,
    )


def _bad(status: str) -> str | None:
    return "bad" if status == "error" else None


def _legend(*labels: str) -> Html:
    items = []
    for kind, label in zip(("kept", "dropped", "error"), labels, strict=True):
        square = element("svg", element("rect", width=12, height=12, class_=kind), aria_hidden="true")
        items.append(element("span", square, label))
    return element("div", *items, class_="legend soft")


def _histograms(run: Run) -> Html:
    """One card for each score, then for length, size and rate."""
    found = run.survey
    names = sorted(found.scores, key=_place)
    status = {one: found.has_status(one) for one in STATUSES}
    cards, empty = [], []
    for index, name in enumerate((*names, *SPANS)):
        values = _measure(found, name)
        is_finite = np.isfinite(values)
        if not is_finite.any():
            empty.append(name)
            continue
        groups = [(_WORDS[one], one, values[is_finite & chosen]) for one, chosen in status.items()]
        known = values[is_finite]
        marks = run.marks.get(name, [])
        rest = int((found.is_clip & ~is_finite).sum())
        least, middle, most = (
            number(float(value)) for value in np.quantile(known, (0, 0.5, 1), method="lower")
        )
        says = [
            f"{least} to {most}, median {middle}",
            f"{len(known):,} clips" + (f", {rest:,} without" if rest else ""),
        ]
        chart = histogram(f"score-{index}", name, groups, marks)
        about = element("div", "; ".join(says), class_="soft")
        cards.append(element("div", element("h3", name), chart, about, class_="card"))
    if not cards:
        return _nothing("no clip was measured")
    legend = "Dashed lines are the thresholds of config.yaml; shaded is what they refuse. "
    legend += "A stage that drops a clip is the last that looks at it, so later scores are of fewer clips."
    without = f"Without any value: {', '.join(short(name, 40) for name in empty)}." if empty else None
    return join(
        element("p", legend, class_="soft"),
        _legend(*_WORDS.values()),
        element("div", *cards, class_="cards"),
        element("p", without, class_="soft") if without else None,
    )


def _place(score: str) -> tuple[int, int, str]:
    """Scores of one stage stand together, those of every manifest first."""
    stages = [name.partition("_")[0] for name in SCORES]
    stage = score.partition("_")[0]
    known = SCORES.index(score) if score in SCORES else len(SCORES)
    return stages.index(stage) if stage in stages else len(stages), known, score


def _measure(found: Survey, name: str) -> np.ndarray:
    if name == "duration_s":
        return found.column("end_s") - found.column("start_s")
    if name == "short_side":
        return np.minimum(found.column("width"), found.column("height"))
    return found.column(name)


def _sheet(run: Run, sheet: Sheet) -> Html:
    shown = f"{len(sheet.rows)} of {sheet.of:,}" if len(sheet.rows) < sheet.of else f"{sheet.of:,}"
    about = ", ".join(part for part in (shown, sheet.about) if part)
    cards = [_figure(run.rows[row], run.pictures[row]) for row in sheet.rows]
    return join(
        element("h3", sheet.title, element("span", f" {about}", class_="soft"), class_="sheet"),
        element("div", *cards, class_="cards"),
    )


def _figure(values: Mapping[str, Any], picture: bytes | str) -> Html:
    name = short(values["source"], _MAX_NAME)
    if isinstance(picture, bytes):
        data = base64.b64encode(picture).decode()
        shown = element(
            "img", src=f"data:image/jpeg;base64,{data}", alt=f"Four frames of {name}", loading="lazy"
        )
    else:
        shown = element("div", short(picture, _MAX_DETAIL), class_="missing")
    facts = []
    if values["start_s"] is not None and values["end_s"] is not None:
        facts.append(f"{values['start_s']:.2f} to {values['end_s']:.2f} s")
    if values.get("quality") is not None and math.isfinite(values["quality"]):
        facts.append(f"quality {number(values['quality'])}")
    texts = [short(values["detail"], _MAX_DETAIL), short(values["caption"], _MAX_CAPTION)]
    caption = [element("div", element("b", name)), element("div", ", ".join(facts), class_="soft")]
    caption += [
        element("p", text, class_=kind) for text, kind in zip(texts, ("soft", None), strict=True) if text
    ]
    return element("figure", shown, element("figcaption", *caption), class_="card")


def _captions(run: Run) -> Html:
    found = run.survey
    changed = int(found.is_rewritten.sum())
    about = f"{found.num_captions:,} of {len(found.cause):,} rows have a caption; "
    about += f"{changed:,} differ from the one that came with the source."
    parts = [element("p", about, class_="soft")]
    tables = {"Caption from": found.caption_sources, "Not rewritten because": found.caption_notes}
    for title, counts in tables.items():
        rows = [(short(name, _MAX_NAME), count) for name, count in counts.items() if name]
        rows = sorted(rows, key=lambda row: (-row[1], row[0]))[:_MAX_ROWS]
        if rows:
            parts.append(element("div", table((title, "rows"), rows), class_="card narrow"))
    cards = []
    for row in run.captions:
        values = run.rows[row]
        texts = [
            ("before", values["original_caption"]),
            ("after", values["caption"]),
            ("not rewritten", values["caption_note"]),
        ]
        pairs = [
            join(element("dt", name), element("dd", short(text, _MAX_CAPTION) or "(none)"))
            for name, text in texts
            if text or name != "not rewritten"
        ]
        title = element("b", short(values["source"], _MAX_NAME))
        cards.append(element("div", title, element("dl", *pairs), class_="card"))
    return join(*parts, element("div", *cards, class_="cards") if cards else None)


def _errors(run: Run) -> Html:
    found = run.survey
    if not run.errors:
        return _nothing("no errors")
    cards = []
    for code, numbers in run.errors.items():
        reason, count = found.causes[code][1], found.counts[code]
        lines = [
            element("p", element("b", short(run.rows[row]["source"], _MAX_NAME)), " ", _detail(run.rows[row]))
            for row in numbers
        ]
        shown = f" {count:,} rows" if count <= len(numbers) else f" {count:,} rows, {len(numbers)} of them:"
        title = element(
            "h3", short(reason, _MAX_NAME) or "no reason given", element("span", shown, class_="soft")
        )
        cards.append(element("div", title, *lines, class_="card wide"))
    others = sum(status == "error" for status, _ in found.causes) - len(cards)
    return join(*cards, element("p", f"And {others:,} rarer causes.", class_="soft") if others else None)


def _detail(values: Mapping[str, Any]) -> str:
    return short(values["detail"], _MAX_DETAIL)


def _speed(run: Run) -> Html:
    """Tasks per second over the working time of each phase, and what the workers spent theirs on."""
    work = run.output / "work"
    phases: dict[str, list[Pace]] = {}
    with suppress(OSError):  # said below: an older run, or its work folder was removed
        for pace in read_pace(work / PACE_FILE):
            phases.setdefault(pace.phase, []).append(pace)
    shown = list(phases.items())[:_MAX_PHASES]
    cards = [_phase(f"speed-{index}", name, paces) for index, (name, paces) in enumerate(shown)]
    spent = _spent(work)
    if not cards and not spent:
        return _nothing(
            f"nothing is noted of the time: {work.name}/{PACE_FILE} and the journals are not there"
        )
    about = "Working time only: pauses between runs on the same output are left out."
    parts = [element("p", about, class_="soft"), element("div", *cards, class_="cards")] if cards else []
    if spent:
        whole = sum(spent.values())
        lines = [
            join(
                element("div", name, class_="name"),
                bar([("kept", seconds)], whole, f"{name}: {_share(seconds, whole)}"),
                element(
                    "div",
                    _length(seconds),
                    element("span", f" {_share(seconds, whole)}", class_="soft"),
                    class_="count",
                ),
            )
            for name, seconds in sorted(spent.items(), key=lambda item: (-item[1], item[0]))[:_MAX_ROWS]
        ]
        parts.append(element("h3", f"What workers spent {_length(whole)} on", class_="sheet"))
        parts.append(element("div", *lines, class_="steps card"))
    return join(*parts)


def _phase(key: str, name: str, paces: Sequence[Pace]) -> Html:
    """Rates come from the line of finished tasks over time, cut at equal distances."""
    seconds = np.cumsum([0.0, *(pace.seconds for pace in paces)])
    done = np.cumsum([0, *(pace.done for pace in paces)])
    unit = f"{short(paces[0].unit, 20)}/s"
    minutes = seconds[-1] > 300
    edges = np.linspace(0.0, seconds[-1], min(max(len(paces), 2), _MAX_COLUMNS) + 1)
    rates = np.diff(np.interp(edges, seconds, done)) / np.diff(edges)
    mean = float(done[-1] / seconds[-1])
    begun = paces[0].ended_at - paces[0].seconds
    first, last = _when(begun), _when(paces[-1].ended_at)
    last = last.removeprefix(first[:11])  # of the same day the time is enough
    about = f"{done[-1]:,} {short(paces[0].unit, 20)} in {_length(float(seconds[-1]))}; {first} to {last} UTC"
    title = f"{short(name, 40)}, {unit} over {'minutes' if minutes else 'seconds'}"
    chart = columns_chart(key, title, edges / (60.0 if minutes else 1.0), rates, mean=mean, unit=unit)
    return element("div", element("h3", title), chart, element("div", about, class_="soft"), class_="card")


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(max(seconds, 0.0), datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _spent(work: Path) -> dict[str, float]:
    """Seconds of all tasks in the journals by what they went to, those of earlier settings included."""
    spent: dict[str, float] = {}
    for path in sorted(work.glob("*.journal")):
        for value in read_values(path):
            times = value.get("seconds") if isinstance(value, dict) else None
            for name, seconds in times.items() if isinstance(times, dict) else ():
                if isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds > 0:
                    spent[short(name, 40)] = spent.get(short(name, 40), 0.0) + seconds
    return spent


def _settings_text(run: Run) -> Html | None:
    try:
        with (run.output / "config.yaml").open("rb") as file:
            text = file.read(_MAX_SETTINGS_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    return element(
        "details", element("summary", "Settings (config.yaml)"), element("pre", text), class_="card wide"
    )
