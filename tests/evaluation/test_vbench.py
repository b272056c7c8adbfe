"""VBench: arithmetic, names, seeds, shards, going on after a kill, which answers of scorers are believed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hummingbird import HummingbirdPipeline
from hummingbird.evaluation.vbench import DIMENSIONS, bridge, evaluate_vbench, suite, totals, videos
from hummingbird.evaluation.vbench.bridge import ScoringError
from hummingbird.evaluation.vbench.totals import combine, normalize
from hummingbird.evaluation.vbench.videos import Shard
from hummingbird.video_io import probe_video
from tests.pipelines.tiny import CALL, tiny_pipeline

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests/goldens/vbench/leaderboard.json").read_text())
PROMPTS: list[dict[str, Any]] = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a red circle moving right", "dimension": ["color"], "auxiliary_info": {"color": "red"}},
    {"prompt_en": "alley", "dimension": ["scene", "background_consistency"]},
    {"prompt_en": "a façade, snow", "dimension": ["overall_consistency", "aesthetic_quality"]},
    {"prompt_en": "alley", "dimension": ["imaging_quality"]},
]


# ---------------------------------------------------------------------------------------- arithmetic


@pytest.mark.golden
@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: row["model"])
def test_totals_are_those_of_the_leaderboard(row: dict[str, Any]) -> None:
    found = totals({name: score / 100 for name, score in row["scores"].items()})
    for name in ("quality", "semantic", "total"):
        value = found[name]
        assert value is not None
        # Inputs and results are rounded to 0.01; the widest end, appearance style, stretches by 1 / 0.2846.
        assert 100 * value == pytest.approx(row[name], abs=0.0075), name


@pytest.mark.golden
def test_the_papers_total() -> None:
    assert round(combine(83.73, 71.84), 2) == 81.35


def test_a_wrong_weight_or_end_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    row = GOLDEN["rows"][0]
    scores = {name: score / 100 for name, score in row["scores"].items()}
    plain = dict.fromkeys(DIMENSIONS, None)
    for name in plain:
        ends = DIMENSIONS[name]
        monkeypatch.setitem(DIMENSIONS, name, type(ends)(ends.group, ends.low, ends.high, 1.5 * ends.weight))
        changed = totals(scores)[ends.group]
        assert changed is not None
        assert abs(100 * changed - row[ends.group]) > 0.0075, name
        monkeypatch.setitem(DIMENSIONS, name, ends)


def test_totals_with_something_missing_are_none_not_a_mean_of_the_rest() -> None:
    scores = {name: score / 100 for name, score in GOLDEN["rows"][0]["scores"].items()}
    del scores["scene"]
    found = totals(scores)
    assert found["quality"] is not None
    assert found["semantic"] is None
    assert found["total"] is None
    assert totals({}) == {"quality": None, "semantic": None, "total": None}


@pytest.mark.parametrize("score", [float("nan"), float("inf"), True, "0.5", None])
def test_what_is_no_score_is_refused(score: Any) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        normalize("scene", score)


# --------------------------------------------------------------------------------------------- suite


@pytest.fixture
def full_info(tmp_path: Path) -> Path:
    path = tmp_path / "VBench_full_info.json"
    path.write_text(json.dumps(PROMPTS), encoding="utf-8")
    return path


def test_the_suite_is_read_from_file_folder_checkout_or_lists(full_info: Path, tmp_path: Path) -> None:
    read = suite.read_suite(full_info)
    assert [prompt.text for prompt in read.prompts] == [row["prompt_en"] for row in PROMPTS[:4]]
    assert read.prompts[2].dimensions == ("scene", "background_consistency", "imaging_quality")
    assert suite.read_suite(tmp_path).prompts == read.prompts
    (tmp_path / "checkout" / "vbench").mkdir(parents=True)
    full_info.rename(tmp_path / "checkout" / "vbench" / full_info.name)
    assert suite.read_suite(tmp_path / "checkout").sha256 == read.sha256

    lists = tmp_path / "prompts" / "prompts_per_dimension"
    lists.mkdir(parents=True)
    (lists / "scene.txt").write_text("alley\n\n harbour \n")
    (lists / "subject_consistency.txt").write_text("a person eating\n")
    found = {prompt.text: prompt.dimensions for prompt in suite.read_suite(tmp_path).prompts}
    assert found == {
        "a person eating": ("subject_consistency", "motion_smoothness", "dynamic_degree"),
        "alley": ("background_consistency", "scene"),
        "harbour": ("background_consistency", "scene"),
    }


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt_en": "../../up", "dimension": ["scene"]}], "cannot be in the name"),
        ([{"prompt_en": "a\nb", "dimension": ["scene"]}], "cannot be in the name"),
        ([{"prompt_en": ".hidden", "dimension": ["scene"]}], "leading dot"),
        ([{"prompt_en": "é" * 130, "dimension": ["scene"]}], "over 255 bytes"),
        ([{"prompt_en": "alley", "dimension": ["beauty"]}], "VBench lacks"),
        ([{"prompt_en": "alley", "dimension": "scene"}], "no list"),
        ([{"prompt": "alley", "dimension": ["scene"]}], "prompt_en"),
        ({"prompt_en": "alley"}, "list of prompts"),
        ([], "no prompts"),
        ([{"prompt_en": "alley", "dimension": ["scene"]}] * 20_001, "at most 20000"),
    ],
)
def test_a_bad_suite_is_refused_in_one_line(full_info: Path, rows: Any, says: str) -> None:
    full_info.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=says) as refused:
        suite.read_suite(full_info)
    assert "\n" not in str(refused.value)


def test_what_is_no_suite_is_refused(full_info: Path, tmp_path: Path) -> None:
    full_info.write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match="UTF-8"):
        suite.read_suite(full_info)
    full_info.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="JSON"):
        suite.read_suite(full_info)
    full_info.unlink()
    with pytest.raises(FileNotFoundError, match=r"VBench_full_info\.json"):
        suite.read_suite(tmp_path)
    with pytest.raises(FileNotFoundError, match="--vbench-python"):
        suite.read_suite(None)


def test_some_prompts_are_spread_over_the_suite_and_keep_their_seeds(full_info: Path) -> None:
    read = suite.read_suite(full_info)
    assert [prompt.text for prompt in suite.select(read, None, 2)] == [
        "In a still frame, a stop sign",
        "a façade, snow",
    ]
    scene = suite.select(read, ["scene"], None)
    assert [prompt.text for prompt in scene] == ["alley"]
    every = {job.file: job.seed for job in videos.plan_videos(read.prompts, samples=5, seed=3)}
    assert len(every) == len(set(every.values())) == 20
    assert every == {**every, **{job.file: job.seed for job in videos.plan_videos(scene, samples=2, seed=3)}}
    other = {job.seed for job in videos.plan_videos(read.prompts, samples=5, seed=4)}
    assert not other & set(every.values())
    with pytest.raises(ValueError, match="beauty"):
        suite.select(read, ["beauty"], None)
    with pytest.raises(ValueError, match="1 to 5"):
        videos.plan_videos(read.prompts, samples=6, seed=0)


def test_shards_share_the_videos_out(full_info: Path) -> None:
    jobs = videos.plan_videos(suite.read_suite(full_info).prompts, samples=5, seed=0)
    parts = [jobs[shard.index :: shard.count] for shard in (Shard(index, 3) for index in range(3))]
    assert sorted(job.file for part in parts for job in part) == sorted(job.file for job in jobs)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for text in ("4/4", "-1/4", "1", "a/b", "0/0", "1/2/3"):
        with pytest.raises(ValueError, match="INDEX/COUNT"):
            Shard.parse(text)


# -------------------------------------------------------------------------------------------- videos


@pytest.fixture(scope="module")
def pipe() -> HummingbirdPipeline:
    defaults = {name: value for name, value in CALL.items() if name != "output_type"}
    return tiny_pipeline(default_call={**defaults, "num_inference_steps": 1})


def run(pipe: HummingbirdPipeline, folder: Path, full_info: Path, **options: Any) -> dict[str, Any]:
    return evaluate_vbench(pipe, model="tiny", to=folder, prompts=full_info, **{"samples": 2, **options})


def made(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "videos").iterdir())}


def test_shards_make_the_same_videos_as_one_process_and_the_last_one_reports(
    pipe: HummingbirdPipeline, full_info: Path, tmp_path: Path
) -> None:
    whole = run(pipe, tmp_path / "whole", full_info)
    assert whole["status"] == "made"
    assert sorted(made(tmp_path / "whole")) == sorted(
        f"{row['prompt_en']}-{sample}.mp4" for row in PROMPTS[:4] for sample in (0, 1)
    )
    assert probe_video(tmp_path / "whole/videos/alley-1.mp4").width == CALL["width"]
    first = run(pipe, tmp_path / "parts", full_info, shard="1/2")
    assert (first["status"], first["videos"]["made"]) == ("sampling", 4)
    assert not (tmp_path / "parts/report.json").exists()
    run(pipe, tmp_path / "parts", full_info, shard="0/2")
    assert made(tmp_path / "parts") == made(tmp_path / "whole")
    report = json.loads((tmp_path / "parts/report.json").read_text())
    assert report["settings"]["num_frames"] == 3
    assert report["settings"]["rewritten_prompts"] is False
    assert set(report["environment"]) == {"0-of-2", "1-of-2"}
    assert report["totals"] == {"quality": None, "semantic": None, "total": None}
    assert any("2 videos of each prompt" in note for note in report["deviations"])


def test_a_lost_video_and_a_torn_line_are_made_again_and_nothing_else(
    pipe: HummingbirdPipeline, full_info: Path, tmp_path: Path
) -> None:
    run(pipe, tmp_path, full_info)
    before = made(tmp_path)
    (tmp_path / "videos/alley-0.mp4").unlink()
    journal = tmp_path / "journal/0-of-1.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]) + lines[-1][:40])  # as a kill leaves it
    told: list[str] = []
    run(pipe, tmp_path, full_info, progress=told.append)
    assert told[0] == "videos: 6 of 8 are there, 2 to make"
    assert made(tmp_path) == before
    told.clear()
    run(pipe, tmp_path, full_info, progress=told.append)
    assert told == ["videos: 8 of 8 are there, 0 to make"]


def test_another_setting_needs_another_folder(
    pipe: HummingbirdPipeline, full_info: Path, tmp_path: Path
) -> None:
    run(pipe, tmp_path, full_info, dimensions=["scene"])
    run(pipe, tmp_path, full_info, dimensions=["scene", "color"])  # more videos of the same kind may come
    with pytest.raises(ValueError, match=r"num_inference_steps 1 there, 2 now.*new folder"):
        run(pipe, tmp_path, full_info, num_inference_steps=2)


def test_a_changed_video_is_noticed(pipe: HummingbirdPipeline, full_info: Path, tmp_path: Path) -> None:
    run(pipe, tmp_path, full_info, dimensions=["scene"])
    path = tmp_path / "videos/alley-0.mp4"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    with pytest.raises(ValueError, match=r"not what was made, first 'alley-0\.mp4'"):
        run(pipe, tmp_path, full_info, dimensions=["scene"])


def test_a_video_of_nan_is_an_error_in_the_journal_and_the_rest_goes_on(
    pipe: HummingbirdPipeline, full_info: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = videos._sample

    def broken(pipe: Any, batch: Any, settings: Any) -> np.ndarray:
        frames = np.array(real(pipe, batch, settings))
        frames[[job.file == "alley-1.mp4" for job in batch]] = np.nan
        return frames

    monkeypatch.setattr(videos, "_sample", broken)
    report = run(pipe, tmp_path, full_info, batch_size=3)
    assert report["videos"] == {"planned": 8, "made": 7, "failed": 1, "first_missing": "alley-1.mp4"}
    assert "alley-1.mp4" in (tmp_path / "report.html").read_text(encoding="utf-8")
    monkeypatch.undo()
    assert run(pipe, tmp_path, full_info)["videos"]["made"] == 8


def test_rewritten_prompts_change_what_is_asked_not_the_names(
    pipe: HummingbirdPipeline, full_info: Path, tmp_path: Path
) -> None:
    wordings = tmp_path / "longer.json"
    wordings.write_text(json.dumps({"alley": "a red circle on black"}))
    report = run(pipe, tmp_path / "out", full_info, dimensions=["scene"], rewritten=wordings)
    assert report["settings"]["rewritten_prompts"] is True
    plain = run(pipe, tmp_path / "plain", full_info, dimensions=["scene"])
    assert plain["settings"]["rewritten_prompts"] is False
    ours, theirs = made(tmp_path / "out"), made(tmp_path / "plain")
    assert list(ours) == list(theirs) == ["alley-0.mp4", "alley-1.mp4"]
    assert ours != theirs
    with pytest.raises(ValueError, match="2 prompts have no wording"):
        run(
            pipe,
            tmp_path / "more",
            full_info,
            dimensions=["scene", "color", "aesthetic_quality"],
            rewritten=wordings,
        )


@pytest.mark.slow
def test_killed_and_started_again_the_videos_are_the_same(
    pipe: HummingbirdPipeline, full_info: Path, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "hummingbird.cli", "evaluate", "--suite", "vbench", "--samples", "3"]
    command += ["--model", str(tmp_path / "model"), "--prompts", str(full_info), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--to", str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL
    )
    folder = tmp_path / "killed" / "videos"
    try:
        while process.poll() is None and (not folder.is_dir() or len(list(folder.glob("[!.]*.mp4"))) < 3):
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    options = {"model": str(tmp_path / "model"), "prompts": full_info, "samples": 3}
    evaluate_vbench(pipe, to=tmp_path / "killed", **options)
    evaluate_vbench(pipe, to=tmp_path / "whole", **options)
    survivors = {name: data for name, data in made(tmp_path / "killed").items() if not name.startswith(".")}
    assert survivors == made(tmp_path / "whole")
    assert len(survivors) == 12


# ------------------------------------------------------------------------------------------- scoring

SCORERS = '''
import json, os, time, zlib
MODE = open(os.path.join(os.path.dirname(__file__), "mode.txt")).read()

class VBench:
    """The documented calls and files of the real package, over the sizes of files."""

    def __init__(self, device, full_info_dir, output_path):
        self.rows = json.load(open(full_info_dir, encoding="utf-8"))
        self.output = output_path
        assert device == "cpu"

    def evaluate(self, videos_path, name, dimension_list, mode, **kwargs):
        (dimension,) = dimension_list
        assert mode == "vbench_standard"
        found = []
        for row in self.rows:
            names = ["%s-%d.mp4" % (row["prompt_en"], index) for index in range(5)]
            paths = [os.path.join(videos_path, each) for each in names]
            row["video_list"] = [path for path in paths if os.path.isfile(path)]
            found += row["video_list"]
        if MODE == "crash":
            raise RuntimeError("no weights in ~/.cache/vbench")
        if MODE == "hang":
            time.sleep(60)
        if MODE == "short":
            self.rows[0]["video_list"].pop()
        scores = [{"video_path": path, "video_results": (os.path.getsize(path) % 97) / 97} for path in found]
        mean = sum(score["video_results"] for score in scores) / len(scores)
        if MODE == "strange":
            scores[0]["video_path"] = "/etc/passwd"
        mean = {"nan": float("nan"), "percent": 97.0, "text": "good"}.get(MODE, mean)
        for kind, value in (("full_info", self.rows), ("eval_results", {dimension: [mean, scores]})):
            if MODE != "silent":
                with open(os.path.join(self.output, name + "_" + kind + ".json"), "w") as file:
                    json.dump(value, file)
'''


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real environment of its own with a ``vbench`` that keeps to the package's contract."""
    folder = tmp_path_factory.mktemp("scorers")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "vbench").mkdir()
    (packages / "vbench" / "__init__.py").write_text(SCORERS)
    (packages / "vbench" / "VBench_full_info.json").write_text(json.dumps(PROMPTS))
    (packages / "vbench-9.9.dist-info").mkdir()
    (packages / "vbench-9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vbench\nVersion: 9.9\n"
    )
    return folder / "bin" / "python"


def set_mode(python: Path, mode: str) -> None:
    (path,) = python.parent.parent.glob("lib/python*/site-packages/vbench")
    (path / "mode.txt").write_text(mode)


def test_a_whole_run_is_scored_once_and_reported(
    pipe: HummingbirdPipeline, scorers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_mode(scorers, "good")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    options: dict[str, Any] = {"model": "tiny", "to": tmp_path, "samples": 1, "vbench_python": scorers}
    told: list[str] = []
    report = evaluate_vbench(pipe, progress=told.append, **options)
    assert report["status"] == "scored"
    assert sum(line.startswith("vbench 9.9: ") for line in told) == 7
    size = (tmp_path / "videos" / "alley-0.mp4").stat().st_size
    assert report["dimensions"]["scene"]["score"] == pytest.approx(size % 97 / 97)
    assert report["dimensions"]["scene"]["normalized"] == pytest.approx(size % 97 / 97 / 0.8222, abs=1e-6)
    assert report["scorer"]["scene"]["vbench"] == "9.9"
    assert report["totals"]["total"] is None
    assert any(note.startswith("not scored: subject_consistency") for note in report["deviations"])
    told.clear()
    assert evaluate_vbench(pipe, progress=told.append, **options)["dimensions"] == report["dimensions"]
    assert not any(line.startswith("vbench") for line in told)

    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    links: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag != "script"
            links.extend(value or "" for name, value in attrs if name in ("src", "href"))

    Reader().feed(text)
    assert len(links) == 4
    assert all(link.startswith("data:video/mp4;base64,") for link in links)
    assert "media-src data:" in text
    for word in ("guidance scale", "prompts as given", "9.9", "shard 0-of-1", "git_commit"):
        assert word in text


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("crash", "no weights in ~/.cache/vbench"),
        ("hang", r"no result after 2 s; --score-timeout"),
        ("short", r"looked at 1 videos, expected 2; the first that differs is 'alley-1.mp4'"),
        ("strange", "'passwd', which was not asked for"),
        ("nan", "expected a finite number"),
        ("text", "expected a finite number"),
        ("percent", "expected at most 1"),
        ("silent", r"wrote no scene_full_info\.json"),
    ],
)
def test_an_answer_that_is_doubtful_is_no_score(scorers: Path, tmp_path: Path, mode: str, says: str) -> None:
    set_mode(scorers, mode)
    for sample in (0, 1):
        (tmp_path / f"alley-{sample}.mp4").write_bytes(b"x")
    began = time.perf_counter()
    with pytest.raises(ScoringError, match=says) as refused:
        bridge.score_dimension(
            scorers,
            "scene",
            entries=[PROMPTS[2]],
            videos=tmp_path,
            expected=["alley-0.mp4", "alley-1.mp4"],
            log=tmp_path / "scores" / "scene.log",
            timeout_s=2.0 if mode == "hang" else 50.0,
        )
    assert "\n" not in str(refused.value)
    assert time.perf_counter() - began < 50  # the sleeper is ended, not waited for


def test_an_environment_without_vbench_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match="no working vbench"):
        bridge.describe(Path(sys.executable))
    with pytest.raises(FileNotFoundError, match="expected an interpreter"):
        bridge.describe(tmp_path / "python")


def test_lists_of_prompts_are_scored_with_what_the_package_knows_of_them(
    pipe: HummingbirdPipeline, scorers: Path, tmp_path: Path
) -> None:
    set_mode(scorers, "good")
    (tmp_path / "scene.txt").write_text("alley\n")
    report = evaluate_vbench(
        pipe,
        model="tiny",
        to=tmp_path / "out",
        prompts=tmp_path,
        dimensions=["scene"],
        samples=1,
        vbench_python=scorers,
    )
    assert report["dimensions"]["scene"]["num_videos"] == 1


REAL = os.environ.get("HUMMINGBIRD_VBENCH_PYTHON")


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="HUMMINGBIRD_VBENCH_PYTHON names no environment with the vbench package")
def test_the_real_package_scores_flicker(pipe: HummingbirdPipeline, tmp_path: Path) -> None:
    """The one dimension of it that needs no weights."""
    assert REAL is not None
    report = evaluate_vbench(
        pipe,
        model="tiny",
        to=tmp_path,
        dimensions=["temporal_flickering"],
        num_prompts=2,
        vbench_python=REAL,
    )
    found = report["dimensions"]["temporal_flickering"]
    assert found["num_videos"] == found["num_scored"] == 10
    assert 0.0 < found["score"] < 1.0


def test_the_command_on_nano(full_info: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hummingbird.cli import main

    arguments = [
        "evaluate",
        "--suite",
        "vbench",
        "--prompts",
        str(full_info),
        "--samples",
        "1",
        "--steps",
        "1",
    ]
    arguments += ["--device", "cpu", "--num-prompts", "2", "--to", str(tmp_path / "out")]
    assert main([*arguments, "--shard", "0/2"]) == 0
    assert "shard 0/2 is done; 1 of all 2 videos are there" in capsys.readouterr().out
    assert main([*arguments, "--shard", "1/2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["status"] == "made"
    assert sorted(made(tmp_path / "out")) == ["In a still frame, a stop sign-0.mp4", "a façade, snow-0.mp4"]
    with pytest.raises(SystemExit):
        main([*arguments, "--shard", "2/2"])
