"""``python app.py``: its flags, one line for what is wrong, and that nobody sees another browser's videos."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

import app
from hummingbird.app import jobs
from hummingbird.app.videos import Videos
from hummingbird.serving import Engine, JobStore

pytest.importorskip("gradio")


@pytest.mark.parametrize("words", [["--port", "x"], ["--model"], ["--sharing"]])
def test_bad_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        app.main(words)
    assert stop.value.code == 2


def test_a_missing_model_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert app.main(["--model", "no/such/folder", "--folder", str(tmp_path)]) == 1
    error = capsys.readouterr().err.splitlines()
    assert [line for line in error if line.startswith("error: model: got 'no/such/folder'")]


def test_a_rewriter_without_a_model_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert app.main(["--rewriter-url", "http://127.0.0.1:1/v1", "--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: rewriter: got no model")


def test_the_page_shows_the_models_own_defaults(tiny_model: Path, tmp_path: Path) -> None:
    with Engine([str(tiny_model)], JobStore(tmp_path)) as engine:
        demo = app.build_demo(engine)
        values = {
            block.label: block.value
            for block in reversed(demo.blocks.values())
            if getattr(block, "label", None) and hasattr(block, "value")
        }
        assert (values["Steps"], values["Guidance"], values["Frames"]) == (2, 2.0, 3)
        assert (values["Width"], values["Height"]) == (24, 16)
        assert demo.analytics_enabled is False


def test_a_browser_sees_its_own_videos_alone(tiny_model: Path, tmp_path: Path) -> None:
    with Engine([str(tiny_model)], JobStore(tmp_path)) as engine:
        videos = Videos(engine)
        mine, other = jobs.client_of(None), jobs.client_of(["forged"])
        assert mine != other
        assert jobs.client_of(mine) == mine
        requests = jobs.requests_of(engine, {"prompt": "a red circle"}, seed=5, count=2)
        assert [request.seed for request in requests] == [5, 6]
        ids, left_out = jobs.submit(engine, requests, mine)
        assert len(ids) == 2
        assert left_out == ""
        assert videos.view(ids[0], mine) is not None
        for stranger in (other, "page-", "", "127.0.0.1"):
            assert videos.view(ids[0], stranger) is None
            assert jobs.stop(engine, videos, ids, stranger) == 0
            assert videos.history(stranger) == []
        for junk in (None, 5, [], {}, "../../etc/passwd", ids[0] + ".mp4"):
            assert videos.view(junk, mine) is None


def test_a_launched_page_serves_videos_and_nothing_else_of_its_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with Engine([str(tiny_model)], JobStore(tmp_path / "jobs")) as engine:
        demo = app.build_demo(engine)
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
        try:
            (request,) = jobs.requests_of(engine, {"prompt": "a red circle"}, seed=5)
            job = engine.submit(request, "somebody")
            while not (engine.get(job.id) or job).is_final:
                time.sleep(0.05)
            path = engine.video_path(job.id)
            assert path is not None
            with httpx.Client(base_url=url, trust_env=False) as client:
                assert client.get("/").status_code == 200
                mp4, gif = (client.get(f"/videos/{job.id}.{suffix}") for suffix in ("mp4", "gif"))
                assert (mp4.headers["Content-Type"], mp4.content) == ("video/mp4", path.read_bytes())
                assert gif.headers["Content-Type"] == "image/gif"
                assert gif.content.startswith(b"GIF89a")
                for name in (f"{job.id}.sqlite3", f"{job.id}", "..%2Fjobs.sqlite3", "x.mp4", "%00.mp4"):
                    assert client.get(f"/videos/{name}").status_code == 404
                assert client.get(f"/gradio_api/file={tmp_path / 'jobs' / 'jobs.sqlite3'}").status_code == 403
        finally:
            demo.close()


def test_a_name_alone_makes_a_page(tiny_model: Path) -> None:
    demo = app.build_demo(str(tiny_model))
    assert "theme" in demo.launch.keywords
    with pytest.raises(OSError, match="no/such/folder"):
        app.build_demo("no/such/folder")
