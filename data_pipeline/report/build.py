"""``OUTPUT/report.html``: reads what a run left, chooses what is shown of it, and writes the page.

The page needs the manifest only. Settings add thresholds, shards and sources add pictures, and what is left
of ``OUTPUT/work`` adds times; what is missing is named on the page. Equal files make an equal page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.pipeline import PipelineConfig
from data_pipeline.report.pictures import Look, draw_all
from data_pipeline.report.sections import SPANS, Run, Sheet, whole_page
from data_pipeline.report.survey import Survey, survey
from data_pipeline.stages.ingest import IngestError
from data_pipeline.storage import is_url
from hummingbird.config import ConfigError, load_config
from hummingbird.manifest import STATUSES
from hummingbird.page import Mark, short
from hummingbird.video_io import atomic_path

__all__ = ["ReportSummary", "write_report"]

_PER_SHEET = 8
_MAX_SHEETS = 16
"""Contact sheets of drop reasons; the rarer ones are in the funnel only."""

_EXAMPLES, _MAX_CAUSES = 3, 30
_CAPTIONS, _CAPTIONS_KEPT = 12, 4
_MAX_JSON_BYTES = 1_000_000
_MAX_TITLE = 120


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
    run = Run(
        output=output,
        survey=found,
        config=config or PipelineConfig(),
        marks=marks,
        sheets=_sheets(found, found.column("quality")),
        errors=_error_examples(found),
        captions=found.sample(found.is_rewritten, _CAPTIONS) + found.sample(found.has_note, _CAPTIONS_KEPT),
        notes=notes,
    )
    shown = sorted({row for sheet in run.sheets for row in sheet.rows})
    run.rows = found.rows({*shown, *run.captions, *(row for rows in run.errors.values() for row in rows)})
    run.pictures = _pictures(run, shown, input_path or (config.input if config is not None else None))
    path = output / "report.html"
    with atomic_path(path) as partial:
        partial.write_text(whole_page(run), encoding="utf-8")
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
        return None, [f"No thresholds are drawn, and where the input lay is not known: {error}"]


def _resolved(output: Path, notes: list[str]) -> dict[str, Any]:
    """``thresholds.json``: what was decided once all scores were known; empty where it cannot be read."""
    path = output / "thresholds.json"
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        notes.append(f"{path.name} cannot be read ({why}): the threshold of quality.top_percent is not drawn")
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
    for name in SPANS:
        marks[name] = marks.pop(f"basics_{name}", [])
    return marks


def _sheets(found: Survey, quality: np.ndarray) -> list[Sheet]:
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
                sheets.append(Sheet(title=title, about="by quality", rows=chosen.tolist(), of=len(scored)))
    elif kept.any():
        rows = found.sample(kept, _PER_SHEET)
        sheets.append(Sheet(title="Kept", about="no quality was scored", rows=rows, of=int(kept.sum())))
    for code, ((status, reason), count) in enumerate(zip(found.causes, found.counts, strict=True)):
        if status == "dropped" and sum(sheet.title.startswith("Dropped") for sheet in sheets) < _MAX_SHEETS:
            rows = found.sample(found.cause == code, _PER_SHEET)
            title = f"Dropped, {short(reason, _MAX_TITLE) or 'no reason given'}"
            sheets.append(Sheet(title=title, about="", rows=rows, of=count))
    return sheets


def _error_examples(found: Survey) -> dict[int, list[int]]:
    """Rows to show of each cause of an error, by the cause's number."""
    codes = [code for code, (status, _) in enumerate(found.causes) if status == "error"]
    return {code: found.sample(found.cause == code, _EXAMPLES) for code in codes[:_MAX_CAUSES]}


def _pictures(run: Run, shown: Sequence[int], input_path: str | Path | None) -> dict[int, bytes | str]:
    """Pictures of rows: of kept clips from their shard, of others from their source."""
    looks: dict[int, Look] = {}
    missing: dict[int, bytes | str] = {}
    from_source = []
    for row in shown:
        values = run.rows[row]
        shard = _inside(run.output, values["shard"]) if values["shard"] else None
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


def _source_files(run: Run, wanted: set[str], input_path: str | Path | None) -> dict[str, Path | str]:
    """Files of sources, found by the same rules as by the run; or why there is none."""
    places: dict[str, Path | str] = {}
    if not wanted:
        return places
    if input_path is None:
        return dict.fromkeys(wanted, "it is not known where the run read its input; give --input")
    if is_url(input_path):
        return dict.fromkeys(wanted, "its source lies in a storage; give --input with a folder that has it")
    ingest = replace(run.config.ingest, sidecar_captions=False)
    try:
        for source in ingest.sources(Path(input_path)):
            if source.source_id in wanted:
                places[source.source_id] = source.path or source.error or "no file"
                if len(places) == len(wanted):
                    break
    except (IngestError, OSError) as error:
        run.notes.append(f"Pictures from sources are missing: {error}")
    return places
