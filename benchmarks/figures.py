"""Writes the tables of measured figures into README and docs, from benchmarks/results.

python benchmarks/figures.py            writes them between their markers
python benchmarks/figures.py --check    changes nothing; status 1 where a table is not what the results say

A table stands between ``<!-- figures: NAME -->`` and ``<!-- /figures -->``. A new one is a function here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
HARDWARE = {"2core_epyc": "2-core EPYC", "2core_xeon": "2-core Xeon"}
"""Part of a result's name -> what the tables call it; the README says what that is."""

STAGE2 = (
    ("consistency alone", "consistency"),
    ("+ image reward, videos of 2, 4 or 8 steps", "mixed_image"),
    ("+ video reward, the same", "mixed_video"),
    ("+ both, the same", "mixed_both"),
    ("its 8 steps", "mixed_both_8"),
    ("+ both, videos of 4 steps", "both"),
    ("its 8 steps", "both_8"),
    ("the same, then videos of 8 steps: **nano**", "eight"),
    ("nano", "eight_1"),
    ("nano", "eight_2"),
    ("nano", "eight_8"),
    ("nano, 26 frames", "eight_26"),
)
"""Rows of the second stage's table: title, what its result is called after ``nano_stage2_``."""
_NANO = "nano_stage2_eight"
"""Result of the model that ships as ``nano``."""

Row = tuple[str, str, str, str, str]


def _path(name: str) -> Path:
    """The newest result of a name: WHAT_HARDWARE_YYYYMM."""
    found = sorted(RESULTS.glob(f"{name}_*_[0-9]*.*"), key=lambda path: path.stem[-6:])
    found = [path for path in found if re.fullmatch(rf"{name}_[a-z0-9]+_[a-z]+_\d{{6}}", path.stem)]
    if not found:
        raise FileNotFoundError(f"{RESULTS}: no result {name}_HARDWARE_YYYYMM")
    return found[-1]


def _json(name: str) -> Any:
    return json.loads(_path(name).read_text(encoding="utf-8"))


def _text(name: str) -> str:
    return _path(name).read_text(encoding="utf-8")


def _where(name: str, date: str | None = None) -> tuple[str, str]:
    """Hardware and date of a result: the file's own date where it has one, else the month of its name."""
    path = _path(name)
    hardware = HARDWARE[path.stem.removeprefix(f"{name}_")[:-7]]
    if date is None and path.suffix == ".json":
        date = _json(name).get("environment", {}).get("date")
    if date is None:
        found = re.search(r"\d{4}-\d{2}-\d{2}", path.read_text(encoding="utf-8"))
        date = found[0] if found else f"{path.stem[-6:-2]}-{path.stem[-2:]}"
    return hardware, date[:10].replace("-", "\u2011")  # hyphens at which no line breaks


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern!r} in the results: the file has changed its form")
    return found[1]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


# --------------------------------------------------------------------------------------------- tables


def headline() -> str:
    """What is measured, a line each."""
    rows: list[Row] = [_nano_accuracy(), _teacher_accuracy(), _stage1_accuracy(), _nano_speed(), _parity()]
    rows += [_rewards(), _dover(), _conversion(), _pruning(), _export(), _curation()]
    head = "| what | measured | command | hardware | date |\n|---|---|---|---|---|"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])


def _nano_accuracy() -> Row:
    result = _json(_NANO)
    low, high = result["interval_95"]["all"]
    return (
        "`nano` shows the shape, colour, motion and background asked for, in "
        f"{result['num_inference_steps']} steps",
        f"**{_percent(result['accuracy']['all'])}** of {result['num_prompts']} prompts "
        f"(95%: {_percent(low)} to {_percent(high)}); unseen combinations "
        f"{_percent(result['accuracy_unseen']['all'])}",
        "`hummingbird evaluate --suite moving-shapes --num-prompts 512`",
        *_where(_NANO),
    )


def _teacher_accuracy() -> Row:
    result = _json("nano_teacher")
    low, high = result["interval_95"]["all"]
    return (
        f"`nano-teacher`, {result['num_inference_steps']} steps of two passes",
        f"**{_percent(result['accuracy']['all'])}** ({_percent(low)} to {_percent(high)})",
        "`hummingbird evaluate --model nano-teacher --suite moving-shapes --num-prompts 512 "
        "--dtype bfloat16`",
        *_where("nano_teacher"),
    )


def _stage1_accuracy() -> Row:
    result, teacher = _json("nano_stage1"), _json("nano_teacher")
    low, high = result["interval_95"]["all"]
    return (
        "`nano-stage1`, half of its parameters, distilled back",
        f"**{_percent(result['accuracy']['all'])}** ({_percent(low)} to {_percent(high)}; its teacher "
        f"{_percent(teacher['accuracy']['all'])})",
        "`hummingbird evaluate --model nano-stage1 --suite moving-shapes --num-prompts 512 --steps 50`",
        *_where("nano_stage1"),
    )


def _nano_speed() -> Row:
    text = _text("nano_speed")
    seconds = _find(r"median \*\*([\d.]+) s\*\*", text)
    return (
        "one `nano` video, four steps, loaded",
        f"{seconds} s",
        "`python benchmarks/nano_speed.py`",
        *_where("nano_speed"),
    )


def _verdicts(text: str) -> tuple[int, int]:
    """Rows of a table of goldens, and how many of them are within their tolerance."""
    cells = [
        line.rsplit("|", 2)[1].strip() for line in text.splitlines() if re.match(r"\|.*\|.*e[+-]\d", line)
    ]
    return len(cells), cells.count("ok")


def _parity() -> Row:
    count, right = _verdicts(_text("parity"))
    return (
        "networks, schedulers and pipeline against values recorded from the original code",
        f"{right} of {count} within tolerance",
        "`python benchmarks/parity.py`",
        *_where("parity"),
    )


def _rewards() -> Row:
    count, right = _verdicts(_text("rewards_parity"))
    return (
        "rewards and their gradients, the same way (tiny random networks)",
        f"{right} of {count} within tolerance",
        "`python benchmarks/rewards_parity.py`",
        *_where("rewards_parity"),
    )


def _dover() -> Row:
    result = _json("dover_goldens")
    right = result["values"] - result["wrong"]
    return (
        "DOVER, the same way",
        f"{right} of {result['values']} within tolerance",
        "`python benchmarks/dover_goldens.py`",
        *_where("dover_goldens"),
    )


def _conversion() -> Row:
    result = _json("conversion")
    step = result["steps"]["file to folder"]
    assert result["equal_after_both"]
    return (
        f"a checkpoint of {result['num_parameters'] / 1e9:.2f} billion parameters to a folder and back",
        f"{step['seconds']:.0f} s to the folder, at most {step['peak_bytes'] / 1e9:.1f} GB of memory; "
        "the same bits after both",
        "`python benchmarks/conversion.py`",
        *_where("conversion"),
    )


def _pruning() -> Row:
    result = _json("pruning")
    return (
        "half of `nano-teacher` removed without training, loss on held-out clips",
        f"{result['searched']['loss']:.3f} searched, {result['published']['loss']:.3f} the published plan, "
        f"{result['random_median_loss']:.3f} random ones, {result['whole']['loss']:.3f} whole",
        "`python benchmarks/pruning.py`",
        *_where("pruning"),
    )


def _export() -> Row:
    videos = {(video["runtime"], video["steps"]): video for video in _json("export")["videos"]}
    parts = [f"{videos[name, 50]['cpu_s']:.1f} s {name.split()[0]}" for name in ("pytorch", "onnx float32")]
    parts.append(f"{videos['aoti float32', 50]['cpu_s']:.1f} s compiled")
    return (
        "`nano-teacher`, 50 steps, CPU seconds on one thread",
        ", ".join(parts),
        "`python benchmarks/export.py --threads 1 --formats onnx aoti`",
        *_where("export"),
    )


def _curation() -> Row:
    run = _json("curation")["runs"][0]
    return (
        f"curation of thirteen real videos, {run['clips']} clips of 2 to 10 s",
        f"{run['clips_per_second_per_worker']:.2f} clips a second and worker, {run['kept']} kept",
        "`python benchmarks/curation.py --input CLIPS`",
        *_where("curation"),
    )


def nano() -> str:
    """Accuracy of the embedded model by attribute."""
    result = _json(_NANO)
    lines = [
        "| right | all prompts | 95% interval | seen combinations | unseen combinations |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, share in result["accuracy"].items():
        low, high = result["interval_95"][name]
        groups = (result["accuracy_seen"][name], result["accuracy_unseen"][name])
        cells = (_percent(share), f"{_percent(low)} to {_percent(high)}", *map(_percent, groups))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _models(rows: list[tuple[str, str]]) -> str:
    """Accuracy of several models of the moving-shapes world; (title, result) each."""
    lines = [
        "| model | steps | all four | 95% interval | shape | color | motion | background | all, unseen |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for title, name in rows:
        result = _json(name)
        share, (low, high) = result["accuracy"], result["interval_95"]["all"]
        cells = [
            str(result["num_inference_steps"]),
            f"**{_percent(share['all'])}**",
            f"{_percent(low)} to {_percent(high)}",
            *(_percent(share[key]) for key in ("shape", "color", "motion", "background")),
            _percent(result["accuracy_unseen"]["all"]),
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def stage1() -> str:
    """The student of stage 1 beside its teacher, and what it is compared with."""
    return _models(
        [
            ("nano-teacher", "nano_teacher"),
            ("nano-stage1", "nano_stage1"),
            ("distilled without features", "nano_stage1_no_features"),
            ("the same network from nothing", "nano_stage1_scratch"),
            ("the same plan, untrained", "nano_stage1_untrained"),
        ]
    )


def stage2() -> str:
    """Students of few steps beside the models that they learnt from."""
    rows = [
        ("nano-teacher, two passes a step", "nano_teacher"),
        ("nano-stage1, two passes a step", "nano_stage1"),
    ]
    rows += [(title, f"nano_stage2_{name}") for title, name in STAGE2]
    return _models(rows)


def sizes() -> str:
    """Presets: parameters and the cost of one forward pass."""
    found = re.findall(
        r"^([\w.-]+) \| (True|False) \| (\d+) \| \d+ \| ([\d.]+)$", _text("parity"), flags=re.M
    )
    if not found:
        raise ValueError("no presets in the results of parity")
    lines = [
        "| preset | parameters | with guidance embedding | TFLOP of a forward pass, 16 frames of 320x512 |",
        "|---|---:|---:|---:|",
    ]
    counts = {(name, embedding): (int(count), flop) for name, embedding, count, flop in found}
    for name in dict.fromkeys(row[0] for row in found):
        (plain, flop), (guided, _) = counts[name, "False"], counts[name, "True"]
        lines.append(f"| `{name}` | {plain:,} | {guided:,} | {float(flop):.1f} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "nano": nano,
    "stage1": stage1,
    "stage2": stage2,
    "sizes": sizes,
}


# ---------------------------------------------------------------------------------------------- files


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str) -> str:
    """A document with its tables as the results have them.

    Raises:
        ValueError: a marker names no table, or is not closed.
    """
    starts = re.findall(r"<!-- figures: ([\w-]+) -->", text)
    if len(starts) != text.count("<!-- /figures -->"):
        raise ValueError("a marker of figures is not closed")
    unknown = [name for name in starts if name not in TABLES]
    if unknown:
        raise ValueError(f"figures: no table {unknown[0]!r}, expected one of {', '.join(TABLES)}")
    return re.sub(
        r"<!-- figures: ([\w-]+) -->.*?<!-- /figures -->",
        lambda found: f"<!-- figures: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- /figures -->",
        text,
        flags=re.DOTALL,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args(argv)
    stale = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        wanted = filled(text)
        if wanted != text:
            stale.append(path)
            if not args.check:
                path.write_text(wanted, encoding="utf-8")
    for path in stale:
        word = "tables differ from benchmarks/results" if args.check else "written"
        sys.stderr.write(f"{path.relative_to(ROOT)}: {word}\n")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
