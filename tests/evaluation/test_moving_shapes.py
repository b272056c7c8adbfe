"""The suite's figures are right, do not depend on batches or interruptions, and are all in the report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pytest
import torch

from hummingbird.evaluation import (
    evaluate_moving_shapes,
    judge_videos,
    moving_shapes,
    report,
    sampling,
    shapes_report,
    summarize,
)
from hummingbird.nano import world
from hummingbird.nano.world import ATTRIBUTES, Attributes
from hummingbird.video_io import read_video
from tests.pipelines.tiny import CALL, tiny_pipeline

NAMES = (*ATTRIBUTES, "all")


class Renderer:
    """Stands in for a pipeline: renders what it understands a prompt to ask for.

    Args:
        misread: share of videos that show another shape, decided by the video's own noise.
        fail_at: number of the call that is interrupted.
    """

    default_call: ClassVar = {"num_inference_steps": 50, "guidance_scale": 7.5, "fps": 8}
    device = torch.device("cpu")
    unet = SimpleNamespace(dtype=torch.float32)

    def __init__(self, misread: float = 0.0, fail_at: int | None = None) -> None:
        self.misread, self.fail_at = misread, fail_at
        self.components = {"unet": torch.nn.Linear(2, 2)}
        for parameter in self.components["unet"].parameters():
            torch.nn.init.constant_(parameter, 0.5)
        self.calls: list[list[str]] = []

    def __call__(
        self, prompt: list[str], *, generator: list[torch.Generator], output_type: str, **options: Any
    ) -> tuple[np.ndarray]:
        assert output_type == "np"
        assert options == {"num_inference_steps": 50, "guidance_scale": 7.5, "return_dict": False}
        if self.fail_at == len(self.calls):
            raise KeyboardInterrupt
        self.calls.append(prompt)
        videos = []
        for text, source in zip(prompt, generator, strict=True):
            asked = world.parse_caption(text)
            assert asked is not None
            rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=source)))
            if rng.uniform() < self.misread:
                shape = world.SHAPES[asked.indices[0] - 1]
                asked = Attributes(
                    shape=shape, color=asked.color, motion=asked.motion, background=asked.background
                )
            videos.append(world.render_clips([asked], rng).numpy()[0] / 255.0)
        return (np.stack(videos),)


def run(pipe: Any, **options: Any) -> dict[str, Any]:
    return evaluate_moving_shapes(pipe, model="stand-in", progress=False, **options)


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    changing = ("seconds_per_video", "environment", "peak_memory_mb", "batch_size")
    return {name: value for name, value in result.items() if name not in changing}


# ------------------------------------------------------------------------------------------ figures


def test_a_perfect_generator_has_no_mistakes() -> None:
    result = run(Renderer(), num_prompts=64)
    for group in ("accuracy", "accuracy_seen", "accuracy_unseen"):
        assert result[group] == dict.fromkeys(NAMES, 1.0)
    assert result["unclear"] == dict.fromkeys((*ATTRIBUTES, "any"), 0.0)
    assert result["interval_95"]["all"][0] == pytest.approx(64 / (64 + 1.96**2), abs=1e-3)


def test_videos_of_other_prompts_are_wrong() -> None:
    asked = world.evaluation_prompts(64)
    videos = world.render_clips(asked[1:] + asked[:1], np.random.default_rng(0))
    accuracy = summarize(judge_videos(videos, asked))["accuracy"]
    assert accuracy["all"] <= 0.02
    for name in ATTRIBUTES:
        assert accuracy[name] < 0.4


def test_one_wrong_attribute_costs_that_attribute_and_all() -> None:
    asked = world.evaluation_prompts(40)
    shown = [
        Attributes(
            shape=a.shape, color=world.COLORS[a.indices[1] - 1], motion=a.motion, background=a.background
        )
        if index % 4 == 0
        else a
        for index, a in enumerate(asked)
    ]
    result = summarize(judge_videos(world.render_clips(shown, np.random.default_rng(0)), asked))
    assert result["accuracy"] == {"shape": 1.0, "color": 0.75, "motion": 1.0, "background": 1.0, "all": 0.75}
    counts = result["confusion"]["color"]
    assert sum(sum(row.values()) for row in counts.values()) == 40
    assert sum(row.get(value, 0) for value, row in counts.items()) == 30
    assert sum(row["count"] for row in result["by_value"]["color"].values()) == 40


def test_seen_and_unseen_are_counted_apart() -> None:
    asked = world.evaluation_prompts(20)
    videos = world.render_clips(asked, np.random.default_rng(0))
    videos[10:] = videos[10:, :1]  # stills
    result = summarize(judge_videos(videos, asked))
    assert result["accuracy_seen"]["all"] == 1.0
    assert result["accuracy_unseen"]["all"] == result["accuracy_unseen"]["motion"] == 0.0
    assert result["accuracy_unseen"]["shape"] == 1.0
    assert result["accuracy"]["all"] == result["unclear"]["motion"] == result["unclear"]["any"] == 0.5
    assert result["unclear_reasons"] == {"motion: stands still": 10}
    assert summarize(judge_videos(videos[:10], asked[:10]))["accuracy_unseen"] is None


def test_the_oracle_is_never_told_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    real = moving_shapes.judge_batch
    monkeypatch.setattr(moving_shapes, "judge_batch", lambda *given: told.append(given) or real(*given))
    asked = world.evaluation_prompts(2)
    videos = world.render_clips(asked, np.random.default_rng(0))
    judge_videos(videos, asked)
    assert len(told) == 1
    assert len(told[0]) == 1
    assert told[0][0] is videos


def test_wilson_interval() -> None:
    # Newcombe 1998, table I, method 3 (score without continuity correction).
    for hits, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
    ):
        assert moving_shapes.wilson_interval(hits, count) == pytest.approx((low, high), abs=5e-5)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="num_prompts: got 0"):
        run(Renderer(), num_prompts=0)
    with pytest.raises(ValueError, match="batch_size: got 0"):
        run(Renderer(), num_prompts=1, batch_size=0)
    with pytest.raises(ValueError, match="got 2 prompts for 1 videos"):
        judge_videos(np.zeros((1, 16, 64, 64, 3), np.uint8), world.evaluation_prompts(2))


# ------------------------------------------------------------------------------ seeds, batches, resuming


def test_figures_do_not_depend_on_the_batch_size() -> None:
    first, second = (run(Renderer(misread=0.4), num_prompts=21, batch_size=size) for size in (4, 21))
    assert 0.2 < first["accuracy"]["shape"] < 1.0
    assert without_times(first) == without_times(second)


def test_a_real_pipelines_videos_do_not_depend_on_the_batch_size() -> None:
    defaults = {name: value for name, value in CALL.items() if name != "output_type"}
    pipe = tiny_pipeline(few_step=False, default_call={**defaults, "guidance_scale": 2.0})
    prompts = [attributes.prompt for attributes in world.evaluation_prompts(3)]
    seeds = [sampling.video_seed(0, index) for index in range(3)]
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0}
    jobs = [
        sampling.Job(index=index, prompt=prompt, seed=seed)
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    together = sampling.make_batch(pipe, jobs, **options).videos
    assert together.dtype == np.uint8
    assert together.shape == (3, 3, 16, 24, 3)
    for index in range(3):
        alone = sampling.make_batch(pipe, jobs[index : index + 1], **options).videos
        assert np.abs(alone[0].astype(int) - together[index]).max() <= 1


def test_a_real_pipeline_is_evaluated(tmp_path: Path) -> None:
    defaults = {name: value for name, value in CALL.items() if name != "output_type"}
    pipe = tiny_pipeline(few_step=False, default_call={**defaults, "guidance_scale": 2.0})
    result = run(pipe, num_prompts=3, batch_size=2, to=tmp_path)
    assert (result["num_inference_steps"], result["guidance_scale"]) == (2, 2.0)
    assert result["accuracy"]["all"] == 0.0  # random weights, three frames
    assert result["environment"]["dtype"] == "float32"
    assert run(pipe, num_prompts=3, num_inference_steps=1, guidance_scale=1.0)["num_inference_steps"] == 1


def test_video_seeds_are_fixed_and_all_different() -> None:
    seeds = {sampling.video_seed(seed, index) for seed in range(20) for index in range(100)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sampling.video_seed(0, 0) == sampling.video_seed(0, 0)


def test_an_interrupted_run_goes_on_and_ends_equal(tmp_path: Path) -> None:
    expected = run(Renderer(misread=0.4), num_prompts=20, batch_size=6, to=tmp_path / "whole")
    broken = Renderer(misread=0.4, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(broken, num_prompts=20, batch_size=6, to=tmp_path / "broken")
    assert not (tmp_path / "broken" / "report.json").exists()
    again = Renderer(misread=0.4)
    result = run(again, num_prompts=20, batch_size=4, to=tmp_path / "broken")  # another batch size is fine
    assert [len(call) for call in again.calls] == [4, 4]
    assert without_times(result) == without_times(expected)
    for name in ("samples.png", "failures.png"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "broken" / "partial.jsonl").exists()


@pytest.mark.parametrize("change", ["seed", "weights", "num_prompts"])
def test_verdicts_of_another_run_are_not_reused(tmp_path: Path, change: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Renderer(fail_at=1), num_prompts=6, batch_size=4, to=tmp_path)
    pipe = Renderer()
    options: dict[str, Any] = {"num_prompts": 6, "seed": 0}
    if change == "weights":
        torch.nn.init.constant_(pipe.components["unet"].weight, 0.25)
    else:
        options[change] = 5
    run(pipe, batch_size=4, to=tmp_path, **options)
    assert sum(len(call) for call in pipe.calls) == options["num_prompts"]


def test_nan_is_an_error_not_a_verdict(tmp_path: Path) -> None:
    class Broken(Renderer):
        def __call__(self, prompt: list[str], **options: Any) -> tuple[np.ndarray]:
            return (np.full((len(prompt), 16, 64, 64, 3), np.nan),)

    with pytest.raises(ValueError, match="NaN"):
        run(Broken(), num_prompts=2, to=tmp_path)
    assert not (tmp_path / "report.json").exists()


# ------------------------------------------------------------------------------------------- report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("report")
    return folder, run(Renderer(misread=0.3), num_prompts=40, to=folder)


def test_report_json_is_the_answer_and_has_the_agreed_keys(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    stored = json.loads((folder / "report.json").read_text())
    assert stored == json.loads(json.dumps(result))
    agreed = "suite model num_prompts num_inference_steps seed accuracy seconds_per_video environment"
    assert set(agreed.split()) <= set(stored)
    assert stored["suite"] == "moving-shapes"
    assert list(stored["accuracy"]) == list(NAMES)
    assert stored["seconds_per_video"] > 0
    assert stored["peak_memory_mb"] > 10
    for fact in ("date", "device", "hardware", "cpu_cores", "python", "packages", "git_commit"):
        assert fact in stored["environment"]
    assert stored["environment"]["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_pictures_show_every_sample_and_failure(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    failures = round(40 * (1 - result["accuracy"]["all"]))
    assert failures > 3
    row = 64 + 34
    assert PIL.Image.open(folder / "failures.png").size == (8 * 64 + 8, failures * row + 8)
    assert PIL.Image.open(folder / "samples.png").size == (8 * 64 + 8, 24 * row + 8)
    # The first row of samples is video 0, its first frame exactly.
    video = Renderer(misread=0.3)(
        [world.evaluation_prompts(40)[0].prompt],
        generator=[torch.Generator().manual_seed(sampling.video_seed(0, 0))],
        output_type="np",
        num_inference_steps=50,
        guidance_scale=7.5,
        return_dict=False,
    )[0][0]
    tile = np.asarray(PIL.Image.open(folder / "samples.png"))[4:68, 4:68]
    assert (tile == (video[0] * 255).round()).all()


def test_videos_are_kept(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    clips = sorted((folder / "videos").glob("*.mp4"))
    assert 24 <= len(clips) <= 40
    clip = read_video(clips[0])
    assert clip.frames.shape == (16, 64, 64, 3)
    assert clip.fps == 8


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_needs_no_other_file(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    page = _Page()
    page.feed((folder / "report.html").read_text())
    assert page.open == []
    kinds = [link.partition(";")[0] for link in page.links]
    failures = round(40 * (1 - result["accuracy"]["all"]))
    assert kinds.count("data:image/png") == 2
    assert kinds.count("data:video/mp4") == len(kinds) - 2 == failures + 12
    text = " ".join(page.text)
    assert f"{100 * result['accuracy']['all']:.1f}%" in text
    for words in ("unseen combinations", "downleft", "Environment"):
        assert words in text


def test_text_on_the_page_is_escaped(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    hostile = {**result, "model": "<script>alert(1)</script>"}
    page = shapes_report.render_html(hostile, [], folder, {})
    assert "<script>" not in page


def test_verdicts_are_listed_one_a_line(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    records = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records] == list(range(40))
    assert summarize(records)["accuracy"] == result["accuracy"]


def test_a_second_report_in_the_same_folder_shows_nothing_of_the_first(tmp_path: Path) -> None:
    run(Renderer(misread=1.0), num_prompts=4, to=tmp_path)
    assert (tmp_path / "failures.png").is_file()
    run(Renderer(), num_prompts=2, to=tmp_path)
    assert not (tmp_path / "failures.png").exists()
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 2


def test_progress_is_told_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_moving_shapes(Renderer(), model="stand-in", num_prompts=4, batch_size=2)  # type: ignore[arg-type]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "videos 4/4, all four right 100.0%" in captured.err


def test_commit_of_a_folder_outside_any_repository(tmp_path: Path) -> None:
    assert report.git_commit(tmp_path) is None
