"""Folders of videos become rows, means and one page; what cannot be measured is a row with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hummingbird.cli import main
from hummingbird.evaluation import video_suite
from hummingbird.evaluation.frechet import load_features, reward_features
from hummingbird.evaluation.metrics import METRICS, measure_video
from hummingbird.evaluation.samples import list_videos, read_prompts, render_world
from hummingbird.evaluation.video_suite import Source, evaluate_videos, summarize_values
from hummingbird.nano import world
from hummingbird.rewards import load_reward
from tests.rewards.tiny import CONFIGS, tiny_reward, tiny_state_dict


def render(folder: Path, count: int, seed: int = 0) -> Path:
    render_world(world.evaluation_prompts(count, seed), folder, seed=seed)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good clips, one without a prompt, one that is no video."""
    folder = render(tmp_path_factory.mktemp("videos"), 3)
    (folder / "0002.txt").unlink()
    (folder / "broken.mp4").write_bytes(b"no video at all")
    return folder


@pytest.fixture(scope="module")
def finished(
    videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    to = tmp_path_factory.mktemp("report")
    checkpoint = to / "hpsv2.pt"
    torch.save({"state_dict": tiny_state_dict("hpsv2")}, checkpoint)
    rewards = {
        "hpsv2": load_reward("hpsv2", checkpoint, config=CONFIGS["hpsv2"]),
        "viclip": tiny_reward("viclip"),
    }
    features = {"hpsv2": reward_features(rewards["hpsv2"])}
    reference = Source(name="rendered", folder=render(to / "reference", 3, seed=7))
    (reference.folder / "broken.webm").write_bytes(b"nothing")
    source = Source(name="<b>clips", folder=videos)
    result = evaluate_videos([source], to, rewards=rewards, features=features, reference=reference)
    return to, result, rewards


def test_rows_keep_every_video_and_the_reason_of_each_that_failed(finished: Any, videos: Path) -> None:
    to, result, _ = finished
    rows = [json.loads(line) for line in (to / "videos.jsonl").read_text().splitlines()]
    assert [row["video"] for row in rows] == ["0000.mp4", "0001.mp4", "0002.mp4", "broken.mp4"]
    assert "error" in rows[3]
    assert "metrics" not in rows[3]
    for row in rows[:3]:
        assert row["metrics"] == measure_video(videos / row["video"])
    (summary,) = result["sources"]
    assert (summary["num_videos"], summary["num_errors"]) == (4, 1)
    assert summary["errors"] == [{"video": "broken.mp4", "error": rows[3]["error"]}]
    mean = np.mean([row["metrics"]["sharpness"] for row in rows[:3]])
    assert summary["metrics"]["sharpness"]["mean"] == pytest.approx(mean, abs=1e-5)
    assert summary["metrics"]["sharpness"]["count"] == 3
    assert json.loads((to / "report.json").read_text()) == json.loads(json.dumps(result))
    assert not (to / "partial.jsonl").exists()


def test_rewards_score_what_has_a_prompt(finished: Any, videos: Path) -> None:
    to, result, rewards = finished
    rows = [json.loads(line) for line in (to / "videos.jsonl").read_text().splitlines()]
    assert rows[2]["rewards"] == {"hpsv2": None, "viclip": None}
    assert "no prompt" in rows[2]["no_reward"]["hpsv2"]
    summary = result["sources"][0]["rewards"]
    assert summary["hpsv2"]["count"] == 2
    assert summary["hpsv2"]["why_missing"] == {rows[2]["no_reward"]["hpsv2"]: 1}
    frames = video_suite._frames(videos / "0001.mp4", 64)
    for name, reward in rewards.items():
        generator = torch.Generator().manual_seed(video_suite.video_seed(0, 1))
        chosen = frames[reward.frame_selection.indices(16, generator)]
        expected = float(reward(chosen[None], [rows[1]["prompt"]], generator=generator))
        assert rows[1]["rewards"][name] == pytest.approx(expected, abs=1e-5)
        assert -1 <= expected <= 1


def test_a_distance_to_the_reference(finished: Any) -> None:
    _, result, _ = finished
    (row,) = result["frechet"]
    assert (row["features"], row["a"], row["b"]) == ("hpsv2", "<b>clips", "rendered")
    assert (row["num_a"], row["num_b"], row["dimensions"]) == (48, 48, 8)
    assert row["distance"] > 0
    assert result["reference"] == {"name": "rendered", "num_videos": 4, "num_errors": 1}


def test_the_page_holds_everything_and_escapes(finished: Any) -> None:
    to, _, _ = finished
    page = (to / "report.html").read_text()
    for metric in METRICS.values():
        assert metric.title in page
    assert page.count("data:video/mp4;base64,") == 3
    assert "<b>clips" not in page
    assert "&lt;b&gt;clips" in page
    assert "broken.mp4" in page
    assert "http-equiv" in page
    assert 'src="http' not in page


def test_a_reward_that_gives_nan_is_no_score(videos: Path) -> None:
    reward = tiny_reward("hpsv2")
    with torch.no_grad():
        next(reward.network.visual.parameters()).fill_(float("nan"))
    rows = [{"video": "0000.mp4", "prompt": "a", "metrics": {}}, {"video": "broken.mp4", "error": "x"}]
    video_suite._score(Source(name="x", folder=videos), rows, "hpsv2", reward)
    assert rows[0]["rewards"] == {"hpsv2": None}
    assert "the score is nan" in rows[0]["no_reward"]["hpsv2"]
    assert rows[1] == {"video": "broken.mp4", "error": "x"}


def test_a_reward_that_needs_more_frames_says_so(videos: Path, tmp_path: Path) -> None:
    from hummingbird.video_io import write_video

    write_video(np.zeros((3, 32, 32, 3), np.uint8), tmp_path / "short.mp4", 8)
    rows: list[dict[str, Any]] = [{"video": "short.mp4", "prompt": "a", "metrics": {}}]
    video_suite._score(Source(name="x", folder=tmp_path), rows, "viclip", tiny_reward("viclip"))
    assert rows[0]["rewards"]["viclip"] is None
    assert "3 frames" in rows[0]["no_reward"]["viclip"]


def test_an_interrupted_run_measures_the_rest_only(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(path: Path) -> dict[str, Any]:
        if len(measured) == 2:
            measured.append("killed")
            raise KeyboardInterrupt
        measured.append(path.name)
        return {"metrics": dict.fromkeys(METRICS, 0.5)}

    monkeypatch.setattr(video_suite, "measure_one", measure)
    source = Source(name="x", folder=videos)
    with pytest.raises(KeyboardInterrupt):
        evaluate_videos([source], tmp_path)
    result = evaluate_videos([source], tmp_path)
    assert measured == ["0000.mp4", "0001.mp4", "killed", "0002.mp4", "broken.mp4"]
    assert result["sources"][0]["metrics"]["flicker"]["count"] == 4


@pytest.mark.slow
def test_several_processes_measure_the_same(videos: Path, tmp_path: Path) -> None:
    source = Source(name="x", folder=videos)
    one, two = (evaluate_videos([source], tmp_path / str(n), workers=n) for n in (1, 2))
    assert one["sources"] == two["sources"]


def test_summaries_count_only_what_there_is() -> None:
    summary = summarize_values([1.0, None, 3.0])
    assert summary == {
        "count": 2, "mean": 2.0, "interval_95": pytest.approx([0.04004, 3.95996], abs=1e-5),
        "sd": pytest.approx(2**0.5, abs=1e-6), "min": 1.0, "median": 2.0, "max": 3.0,
    }  # fmt: skip
    assert summarize_values([None])["mean"] is None
    assert summarize_values([2.0])["interval_95"] is None


def test_prompts_and_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        list_videos(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="videos: none in"):
        list_videos(tmp_path)
    path = tmp_path / "prompts.txt"
    path.write_text("\n  a cat \n\n a   dog\n")
    assert read_prompts(path) == ["a cat", "a dog"]
    assert read_prompts(path, 1) == ["a cat"]
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts(path)


def test_the_command_measures_a_models_samples(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--suite", "metrics", "--model", str(tiny_model), "--num-prompts", "3",
                 "--steps", "1", "--device", "cpu", "--features", f"vae={tiny_model}",
                 "--reference", "moving-shapes", "--to", str(tmp_path), "--json"]  # fmt: skip
    assert main(arguments) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    (source,) = answer["sources"]
    assert (source["num_videos"], source["num_errors"]) == (3, 0)
    assert source["made"]["num_inference_steps"] == 1
    assert source["metrics"]["color_drift"]["count"] == 0  # three frames
    assert source["metrics"]["flicker"]["count"] == 3
    assert answer["frechet"][0]["b"] == "moving-shapes, rendered"
    assert answer["frechet"][0]["distance"] > 0
    assert len(list((tmp_path / "samples").glob("*/*.mp4"))) == 3


def test_features_by_name(tiny_model: Path) -> None:
    features = load_features("vae", str(tiny_model))
    assert features(torch.rand(2, 3, 16, 24), 0).shape == (1, 128)
