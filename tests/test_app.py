"""The page: one press of the button makes a playable video with the settings shown."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

import app
from hummingbird.video_io import read_video
from tests.pipelines.tiny import CALL, tiny_pipeline

gr = pytest.importorskip("gradio")


def small_pipeline() -> object:
    defaults = {name: value for name, value in CALL.items() if name != "output_type"}
    return tiny_pipeline(few_step=False, default_call={**defaults, "guidance_scale": 2.5})


def test_the_page_shows_the_models_own_defaults() -> None:
    demo = app.build_demo(small_pipeline())
    values = {block.label: block.value for block in demo.blocks.values() if getattr(block, "label", None)}
    assert (values["Steps"], values["Guidance scale"], values["Seed"]) == (2, 2.5, 0)
    assert values["Prompt"] == app.EXAMPLES[0]
    assert demo.analytics_enabled is False


def test_examples_are_of_the_embedded_models_world() -> None:
    from hummingbird.nano.world import parse_caption

    assert all(parse_caption(text) for text in app.EXAMPLES)


def test_an_empty_prompt_is_refused_in_the_page() -> None:
    with pytest.raises(gr.Error, match="prompt is empty"):
        app.make_video(small_pipeline(), tempfile.TemporaryDirectory(), "  ", 0, 1, 1.0)


def test_a_served_page_answers_with_a_video(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gradio_client import Client

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    demo = app.build_demo(small_pipeline())
    _, url, _ = demo.queue().launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", theme=app.theme()
    )
    try:
        client = Client(url, verbose=False, download_files=str(tmp_path / "downloads"))
        answer = client.predict("a red circle", 0, 2, 2.5, api_name="/generate")
        path = answer["video"] if isinstance(answer, dict) else answer
        page = client.config
    finally:
        demo.close()
    assert read_video(path).frames.shape == (3, 16, 24, 3)
    fonts = re.findall(r"https?://[^\"' ]*fonts[^\"' ]*", str(page))
    assert not fonts


@pytest.mark.parametrize("words", [["--port", "x"], ["--model"], ["--sharing"]])
def test_bad_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        app.main(words)
    assert stop.value.code == 2


def test_a_missing_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--model", "no/such/folder"]) == 1
    assert capsys.readouterr().err.startswith("error: model: got 'no/such/folder'")
