"""The page in a real browser: what is pressed is made, shown, kept, and can be made again."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hummingbird.app.snippets import as_command, as_python
from hummingbird.app.videos import Videos
from hummingbird.serving import Engine
from hummingbird.video_io import read_video
from tests.app.conftest import REWRITTEN


def set_number(page: Any, label: str, value: float) -> None:
    """Type into the box of a slider."""
    box = page.get_by_label(f"number input for {label}", exact=True)
    box.fill(str(value))
    box.press("Tab")


def set_up(page: Any, *, steps: int = 2, frames: int = 4, videos: int = 1, seed: int | None = None) -> None:
    """A video that takes a moment."""
    set_number(page, "Steps", steps)
    set_number(page, "Frames", frames)
    set_number(page, "Videos at once", videos)
    if seed is not None:
        page.locator("#hb-tune").get_by_label("Random seed").uncheck()
        page.locator("#hb-tune").get_by_label("Seed", exact=True).fill(str(seed))
        page.locator("#hb-tune").get_by_label("Seed", exact=True).press("Tab")


def generate(page: Any) -> None:
    page.get_by_role("button", name="Generate", exact=True).click()


def results(page: Any) -> Any:
    return page.locator("#hb-results .hb-card:visible")


def test_a_video_is_made_shown_saved_and_kept(page: Any, engine: Engine) -> None:
    for choice, sentence in (("star", "a red star"), ("yellow", "a yellow star moving right on a")):
        page.get_by_label(choice, exact=True).click()
        page.wait_for_function(f"document.querySelector('#hb-ask textarea').value.startsWith('{sentence}')")
    set_up(page, videos=2, seed=41)
    generate(page)
    results(page).locator("video").nth(1).wait_for()
    first, second = results(page).all()
    page.locator("[role=status]", has_text="2 of 2 videos are done").wait_for(state="attached")
    assert "seed 41" in first.inner_text()
    assert "seed 42" in second.inner_text()
    assert re.search(r"\d\.\d s\n", first.inner_text())
    assert re.search(r"The oracle sees \d of 4 as asked", first.inner_text())
    # A browser that cannot play it would have no size.
    page.wait_for_function(
        "[...document.querySelectorAll('#hb-results video')].slice(0, 2).every(v => v.videoWidth === 64)"
    )

    with page.expect_download() as mp4:
        first.get_by_role("link", name="Download mp4, seed 41").click()
    with page.expect_download() as gif:
        first.get_by_role("link", name="Download gif, seed 41").click()
    made = engine.video_path(str(first.get_attribute("data-job")))
    assert made is not None
    original = made.read_bytes()
    assert Path(mp4.value.path()).read_bytes() == original
    assert gif.value.suggested_filename.endswith(".gif")
    from_gif = read_video(gif.value.path()).frames.astype(int)
    assert np.abs(from_gif - read_video(made).frames).mean() < 6.0  # a palette

    first.get_by_role("button", name="Copy as command").click()
    first.get_by_role("button", name="Copied").wait_for()
    job = engine.get(str(first.get_attribute("data-job")))
    assert job is not None
    recipe = Videos(engine).recipe(job.request)
    assert page.evaluate("navigator.clipboard.readText()") == as_command(recipe)
    first.get_by_role("button", name="Copy as Python").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.startsWith('import'))")
    assert page.evaluate("navigator.clipboard.readText()") == as_python(recipe)

    # Everything is there again after a reload: prompt, settings, videos.
    page.reload()
    results(page).locator("video").nth(1).wait_for()
    page.wait_for_function("document.querySelector('#hb-ask textarea').value.startsWith('a yellow star')")
    page.wait_for_function(
        "document.querySelector('input[aria-label=\"number input for Frames\"]').value === '4'"
    )
    assert page.locator("#hb-tune").get_by_label("Random seed").is_checked() is False
    assert page.locator(".hb-compact").count() == 2
    page.wait_for_function(
        "[...document.querySelectorAll('#hb-results video')].slice(0, 2).every(v => v.videoWidth === 64)"
    )

    # Take one off the list, and take the other one's settings.
    last = page.locator(".hb-compact").first
    last.get_by_text("More", exact=True).click()
    last.get_by_role("button", name="Remove").click()
    page.wait_for_function("document.querySelectorAll('.hb-compact').length === 1")
    set_number(page, "Frames", 9)
    results(page).first.get_by_role("button", name="Use these settings").click()
    page.wait_for_function(
        "document.querySelector('input[aria-label=\"number input for Frames\"]').value === '4'"
    )


def test_stop_really_stops(page: Any, engine: Engine) -> None:
    set_up(page, steps=100, frames=16, videos=2)
    generate(page)
    bar = results(page).locator("progress").first
    bar.wait_for()
    # The picture of the unfinished video, and the steps count up.
    results(page).locator("img").first.wait_for()
    job_id = str(results(page).first.get_attribute("data-job"))
    page.get_by_role("button", name="Stop", exact=True).first.click()
    page.wait_for_function("document.querySelectorAll('#hb-results .hb-is-cancelled').length === 2")
    job = engine.get(job_id)
    assert job is not None
    assert job.state == "cancelled"
    assert engine.stats().running == engine.stats().queued == 0
    assert page.get_by_role("button", name="Stop", exact=True).first.is_disabled()


def test_a_reload_in_the_middle_loses_nothing(page: Any) -> None:
    set_up(page, steps=12, frames=4)
    generate(page)
    results(page).locator("progress").wait_for()
    job_id = results(page).first.get_attribute("data-job")
    page.reload()
    results(page).locator("video").wait_for()
    assert results(page).first.get_attribute("data-job") == job_id


def test_what_cannot_be_is_said_in_one_line(page: Any) -> None:
    page.get_by_label("Prompt", exact=True).fill("   ")
    generate(page)
    page.get_by_text("prompt: got an empty text").wait_for()
    page.get_by_label("Prompt", exact=True).fill("a <b>panda</b> <script>document.title = 'x'</script>")
    page.get_by_text("It has never seen").wait_for()
    page.get_by_label("Prompt", exact=True).fill("a pink cross growing on a teal background")
    page.wait_for_function("document.querySelector('#builder-color input[value=pink]').checked")
    page.get_by_label("Prompt", exact=True).fill("a <b>panda</b> <script>document.title = 'x'</script>")
    page.get_by_text("It has never seen").wait_for()
    page.locator("#hb-tune").get_by_label("Width").fill("70")
    page.locator("#hb-tune").get_by_label("Width").press("Tab")
    generate(page)
    page.get_by_text("expected multiples of 16").wait_for()
    page.locator("#hb-tune").get_by_label("Width").fill("32")
    page.locator("#hb-tune").get_by_label("Height").fill("32")
    set_up(page, steps=1, videos=4)
    generate(page)
    # One runs or is about to, three may wait; whichever it is, somebody is told.
    results(page).locator("video").first.wait_for()
    assert page.title() == "Hummingbird"
    assert "<script>" in results(page).first.locator(".hb-prompt").inner_text()
    assert page.locator("#hb-results b", has_text="panda").count() == 0


def test_rewriting_is_shown_and_can_be_undone(page: Any) -> None:
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a twinkling star")
    page.get_by_role("button", name="Rewrite the prompt").click()
    page.get_by_text("Rewritten from “a twinkling star”").wait_for()
    assert prompt.input_value() == REWRITTEN
    # The builder follows, and what was said of the prompt stays.
    page.wait_for_function("document.querySelector('#builder-background input[value=navy]').checked")
    page.get_by_text("Rewritten from “a twinkling star”").wait_for()
    page.get_by_role("button", name="Undo the rewriting").click()
    page.wait_for_function("document.querySelector('#hb-ask textarea').value === 'a twinkling star'")
    # With a server that fails, nothing is made behind the user's back.
    prompt.fill("please fail")
    page.get_by_label("Rewrite before generating").check()
    generate(page)
    page.get_by_text("Not rewritten, and nothing was generated").wait_for()
    assert prompt.input_value() == "please fail"
    assert results(page).count() == 0
    prompt.fill("a star")
    set_up(page, steps=1)
    generate(page)
    results(page).locator("video").wait_for()
    assert results(page).locator(".hb-prompt").inner_text() == REWRITTEN


def test_two_models_side_by_side(page: Any, engine: Engine) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Prompt for both").fill("a blue circle growing on a white background")
    set_number(page, "Steps A", 1)
    set_number(page, "Steps B", 2)
    page.get_by_role("button", name="What both share").click()
    set_number(page, "Frames of both", 3)
    page.get_by_role("button", name="Compare", exact=True).click()
    cards = page.locator("#hb-pair .hb-card:visible")
    cards.locator("video").nth(1).wait_for()
    jobs = [engine.get(str(card.get_attribute("data-job"))) for card in cards.all()]
    requests = [job.request for job in jobs if job is not None]
    assert [request.model for request in requests] == ["nano", "tiny"]
    assert [request.num_inference_steps for request in requests] == [1, 2]
    assert requests[0].seed == requests[1].seed
    assert [card.locator(".hb-label").inner_text() for card in cards.all()] == ["A", "B"]


def test_switching_frees_the_old_model(page: Any, engine: Engine) -> None:
    engine.load_model("nano")
    old = weakref.ref(engine._pipe.unet)  # type: ignore[union-attr]
    page.get_by_role("tab", name="Model", exact=True).click()
    page.get_by_text("6,736,251").wait_for()
    page.get_by_text("It cannot orbit").wait_for()
    page.get_by_label("Model to load").click()
    page.get_by_role("option", name="tiny").click()
    page.get_by_text("Makes video from text with Hummingbird").wait_for()
    page.get_by_role("button", name="Load this model").click()
    page.get_by_role("cell", name="tiny", exact=True).wait_for()
    gc.collect()
    assert old() is None
    assert engine.model_info is not None
    assert engine.model_info.name == "tiny"
    page.get_by_role("tab", name="Generate").click()
    page.wait_for_function(
        "document.querySelector('input[aria-label=\"number input for Frames\"]').value === '3'"
    )


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        pytest.param("light", 390, marks=pytest.mark.slow),
        pytest.param("dark", 1400, marks=pytest.mark.slow),
        pytest.param("light", 1400, marks=pytest.mark.slow),
        pytest.param("dark", 390, marks=pytest.mark.slow),
    ],
)
def test_accessible_on_desktop_and_phone(page: Any, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    set_up(page, steps=1)
    generate(page)
    results(page).locator("video").wait_for()
    page.emulate_media(color_scheme=scheme)
    page.reload()
    results(page).locator("video").wait_for()
    page.set_viewport_size({"width": width, "height": 900})
    for tab in ("Generate", "Compare", "Model"):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = [
            f"{rule['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
            for rule in axe.run(page).response["violations"]
            for node in rule["nodes"]
        ]
        assert not found, f"{scheme} {width} {tab}:\n" + "\n".join(found)


def test_the_keyboard_alone_is_enough(page: Any) -> None:
    set_up(page, steps=1)
    page.get_by_label("Prompt", exact=True).focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == "Generate":
            break
    page.keyboard.press("Enter")
    results(page).locator("video").wait_for()
    page.get_by_role("tab", name="Compare").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Prompt for both").wait_for()
