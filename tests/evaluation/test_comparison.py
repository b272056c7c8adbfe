"""Several models in one run: one page, the same prompts, and nothing is measured twice after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hummingbird import cli
from hummingbird.evaluation.journal import Journal
from hummingbird.evaluation.sampling import Job, describe, open_sampler, video_seed
from hummingbird.evaluation.shapes_comparison import Contender, compare_models, folder_names, read_report
from hummingbird.evaluation.sign_test import sign_test
from tests.evaluation.test_moving_shapes import Renderer, run


class Model(Renderer):
    """A stand-in that can be loaded."""

    def set_progress_bar_config(self, **options: Any) -> None:
        pass


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two models; the second is interrupted, and the same call goes on."""
    to = tmp_path_factory.mktemp("compared")
    loaded: list[Model] = []

    def load(misread: float, fail_at: int | None = None) -> Model:
        loaded.append(Model(misread, fail_at))
        return loaded[-1]

    def contenders(fail_at: int | None) -> list[Contender]:
        return [
            Contender(name="runs/a/model", load=lambda: load(0.0)),  # type: ignore[arg-type,return-value]
            Contender(name="runs/b/model", load=lambda: load(0.5, fail_at)),  # type: ignore[arg-type,return-value]
        ]

    with pytest.raises(KeyboardInterrupt):
        compare_models(contenders(fail_at=2), to=to, num_prompts=16, batch_size=4)
    assert not (to / "report.json").exists()
    result = compare_models(contenders(fail_at=None), to=to, num_prompts=16, batch_size=4)
    assert [len(model.calls) for model in loaded] == [4, 2, 0, 2]
    return to, result


def test_models_are_compared_prompt_by_prompt(compared: tuple[Path, dict[str, Any]]) -> None:
    to, result = compared
    assert [report["model"] for report in result["models"]] == ["runs/a/model", "runs/b/model"]
    assert result["models"][0]["accuracy"]["all"] == 1.0
    wrong = round(16 * (1 - result["models"][1]["accuracy"]["all"]))
    assert 3 < wrong < 13
    (pair,) = result["paired"]
    assert (pair["wins_a"], pair["wins_b"], pair["ties"]) == (wrong, 0, 16 - wrong)
    assert pair["p_value"] == pytest.approx(min(1.0, 2 * 0.5**wrong))
    stored = json.loads((to / "report.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert set(stored) == {"suite", "num_prompts", "seed", "models", "paired", "environment"}
    assert not list(to.rglob("partial.jsonl"))


def test_each_model_has_its_own_report_and_equals_one_evaluated_alone(
    compared: tuple[Path, dict[str, Any]],
) -> None:
    to, result = compared
    alone = run(Model(0.5), num_prompts=16, batch_size=16)
    assert read_report(to / "runs-b")["accuracy"] == alone["accuracy"] == result["models"][1]["accuracy"]
    assert read_report(to / "runs-a", num_prompts=16, seed=0)["interval_95_unseen"] is not None


def test_the_page_has_the_figure_and_videos_side_by_side(compared: tuple[Path, dict[str, Any]]) -> None:
    to, _ = compared
    page = (to / "report.html").read_text()
    assert page.count('class="dot"') == 4  # two models, against seconds and against parameters
    assert "seconds per video" in page
    assert "million parameters" in page
    assert page.count("data:video/mp4;base64,") == 12
    assert "<script" not in page


def test_an_earlier_report_takes_part_if_its_prompts_are_the_same(
    compared: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to, first = compared
    arguments = [
        "evaluate",
        "--suite",
        "moving-shapes",
        "--model",
        str(to / "runs-a"),
        "--model",
        str(to / "runs-b"),
    ]
    arguments += ["--to", str(tmp_path), "--json", "--num-prompts"]
    assert cli.main([*arguments, "16"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [r["accuracy"] for r in answer["models"]] == [r["accuracy"] for r in first["models"]]
    assert cli.main([*arguments, "8"]) == 1
    assert "num_prompts 16, expected 8" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{}", "[", "[1]", '{"suite": "metrics"}'])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=r"report\.json"):
        read_report(tmp_path)


def test_names_become_folders_of_their_own() -> None:
    names = ["nano@4", "runs/stage1/model", "../other/stage1/model", "..", "/", "a/../../b c"]
    assert folder_names(names) == ["nano@4", "runs-stage1", "other-stage1", "model", "model-2", "a-b-c"]
    with pytest.raises(ValueError, match="at least two, all different"):
        compare_models([Contender(name="a"), Contender(name="a")], to=Path("x"))


def test_steps_after_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v@2").mkdir()
    for text, expected in {
        "nano@4": ("nano", 4), "nano": ("nano", None), "v@2": ("v@2", None), "v@2@3": ("v@2", 3),
        "x@0": ("x@0", None), "@3": ("@3", None), "a@b": ("a@b", None),
    }.items():  # fmt: skip
        assert cli._split_steps(text) == expected


# --------------------------------------------------------------------------------- journal and processes


def test_a_journal_survives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "partial.jsonl"
    Journal(path, {"seed": 1}).append([{"index": 0}, {"index": 1}])
    with path.open("a") as file:
        file.write('{"index": 2, "ri')
    found = Journal(path, {"seed": 1})
    assert found.records == [{"index": 0}, {"index": 1}]
    found.append([{"index": 2}])
    assert Journal(path, {"seed": 1}).records == [{"index": 0}, {"index": 1}, {"index": 2}]
    assert Journal(path, {"seed": 2}).records == []
    assert Journal(path, {"seed": 1}).records == []  # it was begun anew
    path.write_bytes(b"\xff\x00[[[[\n")
    assert Journal(path, {}).records == []


def test_facts_of_a_real_model(tiny_model: Path) -> None:
    from hummingbird import HummingbirdPipeline

    pipe = HummingbirdPipeline.from_pretrained(tiny_model)
    facts = describe(pipe)
    assert facts.parameters is not None
    assert facts.parameters["unet"] == sum(value.numel() for value in pipe.unet.parameters())
    assert set(facts.parameters) == {"unet", "vae", "text_encoder"}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="leading")
    assert describe(pipe).scheduler != facts.scheduler
    assert describe(pipe).weights == facts.weights


def load_tiny(folder: str) -> Any:
    from hummingbird import HummingbirdPipeline

    return HummingbirdPipeline.from_pretrained(folder)


@pytest.mark.slow
def test_several_processes_make_the_same_videos(tiny_model: Path) -> None:
    from functools import partial

    jobs = [Job(index=i, prompt="a red circle moving right", seed=video_seed(0, i)) for i in range(5)]
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0}
    found: list[dict[int, np.ndarray]] = []
    for workers, batches in ((1, [jobs]), (2, [jobs[:2], jobs[2:3], jobs[3:]])):
        with open_sampler(partial(load_tiny, str(tiny_model)), workers) as sampler:
            assert sampler.workers == workers
            made = list(sampler.run(batches, **settings))
        found.append({job.index: v for m in made for job, v in zip(m.jobs, m.videos, strict=True)})
    assert sorted(found[0]) == sorted(found[1]) == [0, 1, 2, 3, 4]
    for index in range(5):
        assert np.abs(found[0][index].astype(int) - found[1][index]).max() <= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_command_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle; the same command measures only what is left and no process stays behind."""
    command = [sys.executable, "-m", "hummingbird.cli", "evaluate", "--suite", "moving-shapes", "--model"]
    command += [str(tiny_model), "--num-prompts", "40", "--batch-size", "1", "--workers", "2"]
    command += ["--device", "cpu", "--to", str(tmp_path)]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    journal = tmp_path / "partial.jsonl"
    deadline = time.monotonic() + 400
    while not journal.is_file() or journal.read_text().count("\n") < 5:
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.05)
    children = _children(running.pid)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "going on after" in done.stderr
    assert json.loads((tmp_path / "report.json").read_text())["num_prompts"] == 40
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(text) for text in path.read_text().split()] if path.is_file() else []


# ----------------------------------------------------------------------------------------- the sign test


@pytest.mark.parametrize(
    ("wins_a", "wins_b", "p_value"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (10, 0, 2 / 1024),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (1, 0, 1.0),
    ],
)
def test_sign_test(wins_a: int, wins_b: int, p_value: float) -> None:
    result = sign_test(wins_a, wins_b, 7)
    assert result.p_value == pytest.approx(p_value)
    assert (result.wins_a, result.wins_b, result.ties) == (wins_a, wins_b, 7)


def test_sign_test_of_many_comparisons_does_not_overflow() -> None:
    assert sign_test(3000, 3000).p_value == 1.0
    # The normal approximation with continuity correction: z = (3100 - 3000 - 0.5) / sqrt(1500).
    expected = float(torch.erfc(torch.tensor(99.5 / 1500**0.5 / 2**0.5, dtype=torch.float64)))
    assert sign_test(3100, 2900).p_value == pytest.approx(expected, rel=0.01)
    with pytest.raises(ValueError, match="ties: got -1"):
        sign_test(1, 1, -1)
