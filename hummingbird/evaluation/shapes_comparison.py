"""Several models on the moving-shapes suite: the same prompts and noise, one page, accuracy against cost."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hummingbird.evaluation.moving_shapes import SUITE, evaluate_moving_shapes
from hummingbird.evaluation.report import (
    STYLE,
    VideoShelf,
    environment_section,
    interval_bar,
    percent,
    scroll,
    write_json,
    write_text,
)
from hummingbird.evaluation.sampling import open_sampler
from hummingbird.evaluation.shapes_report import model_line
from hummingbird.evaluation.sign_test import sign_test
from hummingbird.nano.world import ATTRIBUTES
from hummingbird.page import Dot, Html, element, join, page, scatter, table

if TYPE_CHECKING:
    from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["Contender", "compare_models", "folder_names", "read_report", "write_comparison"]

_SHOWN_PROMPTS = 6
_MAX_JSON_BYTES = 64_000_000

Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One model of a comparison.

    Attributes:
        name: in the report; unique.
        load: loads it; picklable where several processes make videos.
        num_inference_steps: None for its own default.
        report: folder of an earlier report of it, whose verdicts are taken instead of new ones.
    """

    name: str
    load: Callable[[], HummingbirdPipeline] | None = None
    num_inference_steps: int | None = None
    report: Path | None = None


def compare_models(
    contenders: Sequence[Contender],
    *,
    to: Path,
    num_prompts: int = 512,
    guidance_scale: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    workers: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Evaluates one model after another and writes one page of all.

    Args:
        contenders: at least two; each has its own report in a folder of its name. Of an interrupted run the
            same call reuses what was done.
        to: folder of the comparison.
        num_prompts, guidance_scale, seed, batch_size: as of ``evaluate_moving_shapes``, for all.
        workers: processes that make videos.
        progress: is told which model is evaluated.

    Returns:
        ``{"suite", "num_prompts", "seed", "models", "paired", "environment"}``: each model's own report, and
        for each two of them how many prompts only one got right.

    Raises:
        ValueError: an earlier report is of other prompts, or names are not unique.
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names) or len(names) < 2:
        raise ValueError(f"model: got {', '.join(names)}, expected at least two, all different")
    folders: list[Path] = []
    for contender, own in zip(contenders, folder_names(names), strict=True):
        folders.append(contender.report or to / own)
        if contender.report is not None:
            read_report(contender.report, num_prompts=num_prompts, seed=seed)  # before hours are spent
    for number, (contender, folder) in enumerate(zip(contenders, folders, strict=True), start=1):
        if contender.load is None:
            continue
        progress(f"model {number} of {len(contenders)}: {contender.name}")
        with open_sampler(contender.load, workers) as sampler:
            evaluate_moving_shapes(
                sampler,
                model=contender.name,
                num_prompts=num_prompts,
                num_inference_steps=contender.num_inference_steps,
                guidance_scale=guidance_scale,
                seed=seed,
                batch_size=batch_size,
                to=folder,
                keep_journal=True,
            )
    result = write_comparison(names, folders, to, num_prompts=num_prompts, seed=seed)
    for contender, folder in zip(contenders, folders, strict=True):
        if contender.load is not None:
            (folder / "partial.jsonl").unlink(missing_ok=True)
    return result


def folder_names(names: Sequence[str]) -> list[str]:
    """A folder for each name: readable, inside the comparison's folder, no two alike."""
    found: list[str] = []
    for name in names:
        plain = text = folder_name(name)
        for number in itertools.count(2):
            if text not in found:
                break
            text = f"{plain}-{number}"
        found.append(text)
    return found


def folder_name(name: str) -> str:
    """A name of a model as that of a folder: its last part says most."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..", "model")]
    text = re.sub(r"[^A-Za-z0-9@._-]+", "-", "-".join(parts[-2:])).strip("-.")
    return (text or "model")[:80]


# ------------------------------------------------------------------------------------------ reports read


def read_report(folder: Path, *, num_prompts: int | None = None, seed: int | None = None) -> Report:
    """Reads what ``evaluate`` left for one model.

    Args:
        folder: with ``report.json`` and ``verdicts.jsonl``.
        num_prompts, seed: what they must be; None accepts any.

    Raises:
        ValueError: it is no report of one model on this suite, or is of other prompts.
    """
    report = _read_json(folder / "report.json")
    if not isinstance(report, dict) or report.get("suite") != SUITE or "accuracy" not in report:
        raise ValueError(f"{folder}: report.json is not of one model on {SUITE}; evaluate the model again")
    for name, wanted in (("num_prompts", num_prompts), ("seed", seed)):
        if wanted is not None and report.get(name) != wanted:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{folder}: its report has {name} {report.get(name)}, expected {wanted}: prompts differ; "
                f"give {flag} {report.get(name)} or evaluate the model again"
            )
    if "interval_95_seen" not in report:
        raise ValueError(f"{folder}: the report is of an older version; evaluate the model again")
    return report


def _read_json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return json.loads(file.read(_MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error


def _verdicts(folder: Path, report: Report) -> list[dict[str, Any]]:
    path = folder / "verdicts.jsonl"
    try:
        with path.open("rb") as file:
            records = [json.loads(line) for line in file.read(_MAX_JSON_BYTES).splitlines()]
        is_whole = [record["index"] for record in records] == list(range(report["num_prompts"]))
        is_whole = is_whole and all(isinstance(record["right"]["all"], bool) for record in records)
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected one verdict a line, got {error!r}") from error
    if not is_whole:
        raise ValueError(f"{path}: expected the verdicts of {report['num_prompts']} videos in order")
    return records


# ------------------------------------------------------------------------------------------------- page


def write_comparison(
    names: Sequence[str], folders: Sequence[Path], to: Path, *, num_prompts: int, seed: int
) -> Report:
    """Writes ``report.html`` and ``report.json`` of several finished reports.

    Args:
        names: of the models.
        folders: of their reports, all of the same prompts.
        to: where the page goes.
        num_prompts, seed: of them all.
    """
    models = [read_report(folder, num_prompts=num_prompts, seed=seed) for folder in folders]
    models = [{**report, "model": name} for report, name in zip(models, names, strict=True)]
    verdicts = [_verdicts(folder, report) for folder, report in zip(folders, models, strict=True)]
    paired = []
    for first, second in itertools.combinations(range(len(models)), 2):
        outcomes = [
            (a["right"]["all"], b["right"]["all"])
            for a, b in zip(verdicts[first], verdicts[second], strict=True)
        ]
        test = sign_test(
            outcomes.count((True, False)),
            outcomes.count((False, True)),
            outcomes.count((True, True)) + outcomes.count((False, False)),
        )
        paired.append({"a": names[first], "b": names[second], **asdict(test)})
    result = {
        "suite": SUITE,
        "num_prompts": num_prompts,
        "seed": seed,
        "models": models,
        "paired": paired,
        "environment": models[-1]["environment"],
    }
    to.mkdir(parents=True, exist_ok=True)
    write_text(to / "report.html", _render(result, folders, verdicts))
    write_json(to / "report.json", result)
    return result


def _render(result: Report, folders: Sequence[Path], verdicts: Sequence[list[dict[str, Any]]]) -> str:
    models = result["models"]
    shelf = VideoShelf()
    title = f"{len(models)} models on {SUITE}"
    return page(
        title,
        element("h1", title),
        element(
            "p",
            f"{result['num_prompts']:,} prompts, half of them combinations never trained on; seed "
            f"{result['seed']}. Every model gets the same prompts and, where its latents have the same "
            "shape, the same noise. Right: all four attributes as asked for. Intervals are Wilson's, 95%.",
            class_="soft",
        ),
        element("h2", "Accuracy against cost", id="cost"),
        _plots(models),
        element("h2", "Figures", id="figures"),
        element("div", scroll(_figures(models)), class_="card wide"),
        element("h2", "By attribute", id="attributes"),
        element("div", scroll(_attributes(models)), class_="card wide"),
        element("h2", "Which of two is better", id="paired"),
        element(
            "p",
            "Prompts that only one of the two got right, and the exact two-sided sign test of the null "
            "hypothesis that either is as likely (McNemar's test).",
            class_="soft",
        ),
        element("div", scroll(_paired(result["paired"])), class_="card wide"),
        _side_by_side(models, folders, verdicts, shelf),
        shelf.note(),
        element("h2", "How each was measured", id="measured"),
        element(
            "div", table(("", ""), [(m["model"], model_line(m)) for m in models]), class_="card wide facts"
        ),
        environment_section(result["environment"]),
        style=STYLE,
        has_videos=True,
    )


def _num_parameters(report: Report) -> int | None:
    parameters = report.get("parameters")
    return sum(parameters.values()) if parameters else None


def _plots(models: Sequence[Report]) -> Html:
    sizes = {report["model"]: _num_parameters(report) for report in models}
    largest = max((size for size in sizes.values() if size), default=1)

    def dot(report: Report, x: float) -> Dot:
        low, high = report["interval_95"]["all"]
        area = (sizes[report["model"]] or largest) / largest
        return Dot(label=report["model"], x=x, y=report["accuracy"]["all"], low=low, high=high, area=area)

    plots = [
        scatter(
            "seconds",
            "Accuracy against seconds",
            [dot(report, max(report["seconds_per_video"], 1e-4)) for report in models],
            x_label="seconds per video",
            y_label="all four right",
        )
    ]
    counted = [(report, size) for report in models if (size := sizes[report["model"]])]
    if counted:
        plots.append(
            scatter(
                "parameters",
                "Accuracy against parameters",
                [dot(report, size / 1e6) for report, size in counted],
                x_label="million parameters",
                y_label="all four right",
            )
        )
    cards = [element("div", plot, class_="card") for plot in plots]
    note = (
        "A dot's area is the number of parameters; lines are 95% intervals. Horizontal axes are logarithmic."
    )
    missing = len(models) - len(counted)
    if missing:
        note += f" Parameters of {missing} exported models are not known: they are left out at the right."
    return join(element("div", *cards, class_="plots"), element("p", note, class_="soft"))


def _figures(models: Sequence[Report]) -> Html:
    rows = []
    for report in models:
        low, high = report["interval_95"]["all"]
        share, size = report["accuracy"]["all"], _num_parameters(report)
        rows.append(
            (
                report["model"],
                percent(share),
                interval_bar(share, low, high),
                f"{percent(low)} to {percent(high)}",
                report["num_inference_steps"],
                f"{report['guidance_scale']:g}",
                f"{report['seconds_per_video']:.2f}",
                "-" if size is None else f"{size / 1e6:.2f} M",
                f"{report['peak_memory_mb']:,.0f}",
            )
        )
    head = (
        "model",
        "all four right",
        "",
        "95% interval",
        "steps",
        "guidance",
        "seconds a video",
        "parameters",
    )
    return table((*head, "peak MiB"), rows)


def _attributes(models: Sequence[Report]) -> Html:
    rows = []
    for report in models:
        cells: list[object] = [report["model"]]
        for name in ATTRIBUTES:
            low, high = report["interval_95"][name]
            cells.append(f"{percent(report['accuracy'][name])} ({percent(low)} to {percent(high)})")
        for group in ("accuracy_seen", "accuracy_unseen"):
            cells.append("-" if report[group] is None else percent(report[group]["all"]))
        rows.append(cells)
    return table(("model", *ATTRIBUTES, "all four, seen", "all four, unseen"), rows)


def _paired(paired: Sequence[dict[str, Any]]) -> Html:
    rows = [
        (
            f"{pair['a']} against {pair['b']}",
            pair["wins_a"],
            pair["wins_b"],
            pair["ties"],
            p_text(pair["p_value"]),
        )
        for pair in paired
    ]
    return table(("pair", "only the first right", "only the second", "both or neither", "p"), rows)


def p_text(p_value: float) -> str:
    """A probability for people: small ones are bounded."""
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def _side_by_side(
    models: Sequence[Report],
    folders: Sequence[Path],
    verdicts: Sequence[list[dict[str, Any]]],
    shelf: VideoShelf,
) -> Html | None:
    """The same prompt by every model, for prompts whose videos were kept by all."""
    kept = [
        {int(path.stem) for path in (folder / "videos").glob("[0-9]*.mp4") if path.stem.isdecimal()}
        for folder in folders
    ]
    common = sorted(set.intersection(*kept) & set(range(models[0]["num_prompts"])))
    if not common:
        return None
    step = max(1, len(common) // _SHOWN_PROMPTS)
    parts: list[Html] = []
    for index in common[::step][:_SHOWN_PROMPTS]:
        figures = []
        for report, folder, records in zip(models, folders, verdicts, strict=True):
            right = records[index]["right"]["all"]
            wrong = [name for name in ATTRIBUTES if not records[index]["right"][name]]
            verdict = "right" if right else f"wrong: {', '.join(wrong)}"
            figures.append(
                shelf.figure(
                    folder / "videos" / f"{index:04d}.mp4",
                    report["model"],
                    element("span", verdict, class_="good" if right else "bad"),
                )
            )
        parts.append(element("h3", f"{index}: {records[index]['prompt']}", class_="sheet"))
        parts.append(element("div", *figures, class_="media"))
    return join(element("h2", "Side by side", id="videos"), *parts)
