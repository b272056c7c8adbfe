"""Pieces of HTML: what users wrote stays text, and every state says what it is."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from hummingbird.app.cards import Judgement, VideoView, card, history, verdict
from hummingbird.app.moving_shapes import Check
from tests.app.test_snippets import recipe

HOSTILE = '</p><script>alert(1)</script><img src=x onerror=alert(2)>" onload="x\' autofocus'


class Elements(HTMLParser):
    """Start tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def view(**changes: object) -> VideoView:
    values: dict[str, object] = {
        "id": "video_1",
        "model": "nano",
        "recipe": recipe(),
        "status": "done",
        "url": "videos/video_1",
    }
    return VideoView(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("status", ["queued", "running", "done", "failed", "cancelled", "gone"])
def test_hostile_text_stays_text(status: str) -> None:
    shown = Elements(
        card(
            view(
                status=status,
                recipe=recipe(prompt=HOSTILE, model=HOSTILE),
                model=HOSTILE,
                error=HOSTILE,
                label=HOSTILE,
                judgement=Judgement((Check("shape", HOSTILE, HOSTILE),), HOSTILE),
            ),
            compact=status == "gone",
        )
    )
    assert {tag for tag, _ in shown.tags}.isdisjoint({"script"})
    assert shown.all("img") == []
    for _, attributes in shown.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "autofocus"]
    assert HOSTILE in shown.text


def test_a_finished_video_can_be_played_saved_and_made_again() -> None:
    shown = Elements(card(view(seconds=75.2)))
    (video,) = shown.all("video")
    assert video["src"] == "videos/video_1.mp4"
    assert video["aria-label"] == f"Video: {recipe().prompt}"
    assert {"controls", "loop", "muted"} <= set(video)
    assert [link["href"] for link in shown.all("a")] == ["videos/video_1.mp4", "videos/video_1.gif"]
    assert "seed 7" in shown.text
    assert "1 min 15 s" in shown.text
    assert "hummingbird generate" in shown.text
    assert "load_pipeline" in shown.text


def test_a_running_video_shows_its_steps() -> None:
    shown = Elements(card(view(status="running", step=2, num_steps=5, preview="data:image/png;base64,AA")))
    (bar,) = shown.all("progress")
    assert (bar["value"], bar["max"]) == ("2", "5")
    assert "Step 2 of 5" in shown.text
    assert shown.all("img")[0]["alt"]
    assert not shown.all("a")


def test_waiting_failed_and_expired_say_so() -> None:
    assert "Waiting: 3 before it" in card(view(status="queued", ahead=3))
    assert "next in line" in card(view(status="queued", ahead=0))
    assert "out of memory" in card(view(status="failed", error="out of memory"))
    assert "cleared this file away" in card(view(status="gone"))
    assert "are kept here" in history([])


def test_a_verdict_does_not_rest_on_colour() -> None:
    checks = (Check("shape", "circle", "circle"), Check("motion", "orbit", "unclear"))
    shown = Elements(verdict(Judgement(checks, "motion: no full turn")))
    assert "1 of 2 as asked" in shown.text
    assert "✓ shape circle" in shown.text
    assert "✗ motion unclear asked: orbit" in shown.text
    assert "no full turn" in shown.text
    free = Elements(verdict(Judgement((Check("shape", None, "star"),))))
    assert "What the oracle sees" in free.text
    assert "No verdict: cannot be read" in verdict(Judgement((), "cannot be read"))
