"""``OUTPUT/report.html``: what a run did to its data, on one page for people to look at.

The page needs the manifest only. Settings add thresholds, shards and sources add pictures, and what is left
of ``OUTPUT/work`` adds times; what is missing is named on the page. Equal files make an equal page.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.journal import read_values
from data_pipeline.page import (
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
from data_pipeline.pictures import Look, draw_all
from data_pipeline.pipeline import PipelineConfig
from data_pipeline.progress import PACE_FILE, Pace, read_pace
from data_pipeline.stages.ingest import IngestError
from data_pipeline.survey import Survey, survey
from hummingbird.config import ConfigError, load_config
from hummingbird.manifest import SCORES, STATUSES
from hummingbird.video_io import atomic_path

__all__ = ["ReportSummary", "write_report"]

_PER_SHEET = 8
_MAX_SHEETS = 16
"""Contact sheets of drop reasons; the rarer ones are in the funnel only."""

_EXAMPLES, _MAX_CAUSES = 3, 30
_CAPTIONS = 12
_MAX_REASONS_OF_A_STEP = 12
_MAX_JSON_BYTES = 1_000_000
_MAX_CAPTION, _MAX_DETAIL, _MAX_NAME = 240, 200, 120
_SPANS = ("duration_s", "short_side", "fps")
"""Measures of a clip that are no scores, but have thresholds."""

_MAX_COLUMNS = 40
_MAX_SETTINGS_BYTES = 20_000

_TOP_PERCENT = "below top percent"
"""The one reason of a stage that is decided after all others."""

_WORDS = {"kept": "kept", "dropped": "dropped", "error": "errors"}


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """What was written.

    Attributes:
        path: the page.
        counts: rows by status.
        num_pictures: clips that are shown.
        num_missing: clips that were to be shown and could not be.
        notes: what the page lacks, and why.
    """

    path: Path
    num_sources: int
    num_rows: int
    counts: Mapping[str, int]
    num_pictures: int
    num_missing: int
    size_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Sheet:
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
class _Run:
    """Everything that the page is made from."""

    output: Path
    survey: Survey
    config: PipelineConfig
    marks: dict[str, list[Mark]]
    notes: list[str] = field(default_factory=list)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[int, bytes | str] = field(default_factory=dict)


def write_report(output: Path, input_path: Path | None = None) -> ReportSummary:
    """Write ``OUTPUT/report.html``.

    Args:
        output: folder of a run.
        input_path: where its input is now; None is where the run read it.

    Raises:
        FileNotFoundError: there is no manifest.
        ManifestError: the manifest cannot be used.
        EngineError: no worker process can be started, to decode pictures.
        OSError: the page cannot be written.
    """
    found = survey(output / "manifest.parquet")
    config, notes = _settings(output)
    marks = _marks(config, _resolved(output, notes)) if config is not None else {}
    run = _Run(output=output, survey=found, config=config or PipelineConfig(), marks=marks, notes=notes)
    quality = found.column("quality")
    sheets = _sheets(found, quality)
    errors = _error_examples(found)
    rewritten = found.sample(found.is_rewritten, _CAPTIONS)
    shown = sorted({row for sheet in sheets for row in sheet.rows})
    run.rows = found.rows({*shown, *rewritten, *(row for rows in errors.values() for row in rows)})
    run.pictures = _pictures(run, shown, input_path or (config.input if config is not None else None))
    sections = [
        _section("funnel", "From sources to clips", _funnel(run)),
        _section("scores", "Scores and thresholds", _histograms(run)),
        _section("clips", "Clips", *[_sheet(run, sheet) for sheet in sheets] or [_nothing("no clips")]),
        _section("captions", "Captions", _captions(run, rewritten)),
        _section("errors", "Errors by cause", _errors(run, errors)),
        _section("speed", "Throughput", _speed(run)),
    ]
    path = output / "report.html"
    with atomic_path(path) as partial:
        partial.write_text(_page(run, sections), encoding="utf-8")
    return ReportSummary(
        path=path,
        num_sources=found.num_sources,
        num_rows=len(found.cause),
        counts={status: found.count(status) for status in STATUSES},
        num_pictures=sum(isinstance(picture, bytes) for picture in run.pictures.values()),
        num_missing=sum(isinstance(picture, str) for picture in run.pictures.values()),
        size_bytes=path.stat().st_size,
        notes=tuple(run.notes),
    )


# --- what is read beside the manifest ----------------------------------------------------------------------


def _settings(output: Path) -> tuple[PipelineConfig | None, list[str]]:
    try:
        return load_config(PipelineConfig, output / "config.yaml"), []
    except ConfigError as error:
        return None, [f"No thresholds and no pictures of dropped clips: {error}"]


def _resolved(output: Path, notes: list[str]) -> dict[str, Any]:
    """``thresholds.json``: what was decided once all scores were known; empty where it cannot be read."""
    path = output / "thresholds.json"
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        notes.append(
            f"{path.name} cannot be read ({why}): thresholds that are shares of the run are not drawn"
        )
        return {}
    return values if isinstance(values, dict) else {}


def _marks(config: PipelineConfig, resolved: Mapping[str, Any]) -> dict[str, list[Mark]]:
    """Thresholds by score: ``min_X`` and ``max_X`` of a section are those of the score ``SECTION_X``."""
    marks: dict[str, list[Mark]] = {}
    for section, settings in vars(config).items():
        if not is_dataclass(settings):
            continue
        for name, value in vars(settings).items():
            side, _, measure = name.partition("_")
            if side in ("min", "max") and isinstance(value, (int, float)) and math.isfinite(value):
                refuses = "below" if side == "min" else "above"
                mark = Mark(label=side, value=float(value), refuses=refuses)
                marks.setdefault(f"{section}_{measure}", []).append(mark)
    # ``min_border`` says what a bar is, and refuses nothing.
    limit = 0.0 if config.basics.borders == "drop" else config.basics.max_border
    marks["basics_border"] = [Mark(label="max", value=limit, refuses="above")]
    marks["quality"] = marks.pop("quality_score", [])
    for name in [name for name in marks if name.startswith("quality")]:
        marks[name] = [mark for mark in marks[name] if mark.value != 0]  # 0 keeps everything
    quality = resolved.get("quality")
    threshold = quality.get("threshold") if isinstance(quality, dict) else None
    if isinstance(threshold, (int, float)) and math.isfinite(threshold):
        label = f"best {config.quality.top_percent:g}% from"
        marks["quality"].append(Mark(label=label, value=float(threshold), refuses="below"))
    for name in _SPANS:
        marks[name] = marks.pop(f"basics_{name}", [])
    return marks


def _sheets(found: Survey, quality: np.ndarray) -> list[_Sheet]:
    """Best and worst of the kept clips, and some of each reason for dropping one."""
    kept = found.has_status("kept")
    scored = np.flatnonzero(kept & np.isfinite(quality))
    sheets = []
    if len(scored):
        order = scored[np.lexsort((scored, -quality[scored]))]
        best = order[:_PER_SHEET]
        worst = order[len(best) :][-_PER_SHEET:][::-1]
        for title, chosen in (("Best of the kept", best), ("Worst of the kept", worst)):
            if len(chosen):
                sheets.append(_Sheet(title=title, about="by quality", rows=chosen.tolist(), of=len(scored)))
    elif kept.any():
        rows = found.sample(kept, _PER_SHEET)
        sheets.append(_Sheet(title="Kept", about="no quality was scored", rows=rows, of=int(kept.sum())))
    for code, ((status, reason), count) in enumerate(zip(found.causes, found.counts, strict=True)):
        if status == "dropped" and sum(sheet.title.startswith("Dropped") for sheet in sheets) < _MAX_SHEETS:
            rows = found.sample(found.cause == code, _PER_SHEET)
            title = f"Dropped, {short(reason, _MAX_NAME) or 'no reason given'}"
            sheets.append(_Sheet(title=title, about="", rows=rows, of=count))
    return sheets


def _error_examples(found: Survey) -> dict[int, list[int]]:
    """Rows to show of each cause of an error, by the cause's number."""
    codes = [code for code, (status, _) in enumerate(found.causes) if status == "error"]
    return {code: found.sample(found.cause == code, _EXAMPLES) for code in codes[:_MAX_CAUSES]}


def _pictures(run: _Run, shown: Sequence[int], input_path: Path | None) -> dict[int, bytes | str]:
    """Pictures of rows: of kept clips from their shard, of others from their source."""
    looks: dict[int, Look] = {}
    missing: dict[int, bytes | str] = {}
    from_source = []
    for row in shown:
        values = run.rows[row]
        shard = (
            _inside(run.output, values["shard"]) if values["status"] == "kept" and values["shard"] else None
        )
        start_s, end_s = _span(values)
        if shard is not None:
            member = f"{values['clip_id']}.mp4"
            looks[row] = Look(path=shard, member=member, start_s=0.0, end_s=end_s - start_s)
        else:
            from_source.append(row)
    places = _source_files(run, {run.rows[row]["source"] for row in from_source}, input_path)
    for row in from_source:
        place = places.get(run.rows[row]["source"])
        if isinstance(place, Path):
            start_s, end_s = _span(run.rows[row])
            looks[row] = Look(path=place, start_s=start_s, end_s=end_s)
        else:
            missing[row] = f"no picture: {place or 'its source is not found in the input'}"
    return missing | draw_all(looks)


def _span(values: Mapping[str, Any]) -> tuple[float, float]:
    """A clip's span, or the first seconds of a source without clips."""
    start_s, end_s = values["start_s"], values["end_s"]
    if start_s is None or end_s is None or not 0 <= start_s < end_s < math.inf:
        return 0.0, 10.0
    return start_s, end_s


def _inside(output: Path, name: str) -> Path | None:
    """A file of the run; None where it is gone, or would lie outside of it."""
    try:
        path = (output / name).resolve()
        return path if path.is_relative_to(output.resolve()) and path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # what no file can be called
        return None


def _source_files(run: _Run, wanted: set[str], input_path: Path | None) -> dict[str, Path | str]:
    """Files of sources, found by the same rules as by the run; or why there is none."""
    places: dict[str, Path | str] = {}
    if not wanted:
        return places
    if input_path is None:
        return dict.fromkeys(wanted, "it is not known where the run read its input; give --input")
    ingest = replace(run.config.ingest, sidecar_captions=False)
    try:
        for source in ingest.sources(input_path):
            if source.source_id in wanted:
                places[source.source_id] = source.path or source.error or "no file"
                if len(places) == len(wanted):
                    break
    except (IngestError, OSError) as error:
        run.notes.append(f"Pictures from sources are missing: {error}")
    return places


# --- sections ----------------------------------------------------------------------------------------------


def _page(run: _Run, sections: Sequence[Html]) -> str:
    found = run.survey
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


def _funnel(run: _Run) -> Html:
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
    for status, what, count in sorted(causes, key=lambda cause: (-cause[2], cause[1]))[
        :_MAX_REASONS_OF_A_STEP
    ]:
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


def _histograms(run: _Run) -> Html:
    """One card for each score, then for length, size and rate."""
    found = run.survey
    names = sorted(found.scores, key=_place)
    status = {one: found.has_status(one) for one in STATUSES}
    cards, empty = [], []
    for index, name in enumerate((*names, *_SPANS)):
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
    legend = (
        "Dashed lines are the thresholds of config.yaml; shaded is what they refuse. A stage that drops a "
    )
    legend += "clip is the last that looks at it, so later scores are of fewer clips."
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


def _sheet(run: _Run, sheet: _Sheet) -> Html:
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


def _captions(run: _Run, rewritten: Sequence[int]) -> Html:
    found = run.survey
    changed = int(found.is_rewritten.sum())
    about = (
        f"{found.num_captions:,} of {len(found.cause):,} rows have a caption; {changed:,} differ from the "
    )
    about += "one that came with the source."
    parts = [element("p", about, class_="soft")]
    for title, counts in (
        ("Caption from", found.caption_sources),
        ("Not rewritten because", found.caption_notes),
    ):
        rows = [(short(name, _MAX_NAME), count) for name, count in counts.items() if name]
        rows = sorted(rows, key=lambda row: (-row[1], row[0]))[:_MAX_CAUSES]
        if rows:
            parts.append(element("div", table((title, "rows"), rows), class_="card narrow"))
    cards = []
    for row in rewritten:
        values = run.rows[row]
        texts = [
            ("before", values["original_caption"]),
            ("after", values["caption"]),
            ("note", values["caption_note"]),
        ]
        pairs = [
            join(element("dt", name), element("dd", short(text, _MAX_CAPTION) or "(none)"))
            for name, text in texts
            if text or name != "note"
        ]
        title = element("b", short(values["source"], _MAX_NAME))
        cards.append(element("div", title, element("dl", *pairs), class_="card"))
    return join(*parts, element("div", *cards, class_="cards") if cards else None)


def _errors(run: _Run, examples: Mapping[int, Sequence[int]]) -> Html:
    found = run.survey
    if not examples:
        return _nothing("no errors")
    cards = []
    for code, numbers in examples.items():
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


def _speed(run: _Run) -> Html:
    """Tasks per second over the working time of each phase, and what the workers spent theirs on."""
    work = run.output / "work"
    phases: dict[str, list[Pace]] = {}
    try:
        for pace in read_pace(work / PACE_FILE):
            phases.setdefault(pace.phase, []).append(pace)
    except OSError:
        pass  # said below: an older run, or its work folder was removed
    cards = [_phase(f"speed-{index}", name, paces) for index, (name, paces) in enumerate(phases.items())]
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
            for name, seconds in sorted(spent.items(), key=lambda item: (-item[1], item[0]))
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


def _settings_text(run: _Run) -> Html | None:
    try:
        with (run.output / "config.yaml").open("rb") as file:
            text = file.read(_MAX_SETTINGS_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    return element(
        "details", element("summary", "Settings (config.yaml)"), element("pre", text), class_="card wide"
    )
