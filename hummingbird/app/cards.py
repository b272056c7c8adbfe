"""Videos, waiting, running and finished, as pieces of HTML. Whatever users wrote is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from hummingbird.app.snippets import Recipe, as_command, as_python

if TYPE_CHECKING:
    from hummingbird.app.moving_shapes import Check

__all__ = ["Judgement", "VideoView", "card", "empty", "history", "verdict"]

Status = Literal["queued", "running", "done", "failed", "cancelled", "gone"]

_PIXELATED_BELOW = 200
"""Videos narrower than this are enlarged with sharp pixels, which shows what is there and nothing else."""

_WORDS = {"shape": "shape", "color": "colour", "motion": "motion", "background": "background"}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the oracle says about a video.

    Attributes:
        checks: one for each attribute; empty where the video could not be judged.
        reason: why something is unclear; empty where all is clear.
    """

    checks: tuple[Check, ...]
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoView:
    """One video as the page shows it.

    Attributes:
        model: as the server names it; ``recipe.model`` is what it is loaded from.
        status: ``gone`` is a video that was finished and whose file has expired.
        step: steps done.
        ahead: jobs that come before it, while it waits; None where that is not known.
        seconds: since it began, or from beginning to end; None before.
        preview: ``data:`` address of a picture of the unfinished video.
        error: why it failed, one line.
        url: relative address of the finished file without its suffix.
        label: a few words above it, such as ``A``.
    """

    id: str
    model: str
    recipe: Recipe
    status: Status
    step: int = 0
    num_steps: int = 0
    ahead: int | None = None
    seconds: float | None = None
    preview: str | None = None
    error: str = ""
    url: str = ""
    label: str = ""
    judgement: Judgement | None = None


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def _facts(view: VideoView) -> str:
    recipe = view.recipe
    facts = [
        escape(view.model),
        f"{recipe.num_inference_steps} steps",
        f"guidance {recipe.guidance_scale:g}",
        f"{recipe.num_frames} frames at {recipe.fps:g} fps",
        f"{recipe.width}×{recipe.height}",
    ]
    return " · ".join(f"<span>{fact}</span>" for fact in facts)


def _badges(view: VideoView) -> str:
    """Seed and time, which one looks for first."""
    parts = [f'<span class="hb-badge">seed <b>{view.recipe.seed}</b></span>']
    if view.seconds is not None and view.status == "done":
        parts.append(f'<span class="hb-badge"><b>{_duration(view.seconds)}</b></span>')
    return f'<p class="hb-badges">{"".join(parts)}</p>'


def _frame(view: VideoView, *, compact: bool) -> str:
    """The upper part of a card: the video, or what stands in for it; always of the video's shape."""
    recipe = view.recipe
    shape = f"aspect-ratio: {recipe.width} / {recipe.height}"
    pixelated = " hb-pixelated" if recipe.width < _PIXELATED_BELOW else ""
    label = f'<span class="hb-label">{escape(view.label)}</span>' if view.label else ""
    if view.status == "done":
        # A small one shows a picture from its middle, and plays while it is pointed at, focused or tapped.
        middle = f"#t={recipe.num_frames / recipe.fps / 2:.2f}" if compact else ""
        play = 'data-hover-play tabindex="0" preload="auto"' if compact else "autoplay controls"
        inner = (
            f'<video src="{escape(view.url)}.mp4{middle}" {play} loop muted playsinline '
            f'aria-label="Video: {escape(recipe.prompt)}"></video>'
        )
    elif view.status == "running":
        picture = f'<img src="{view.preview}" alt="Preview of the unfinished video">' if view.preview else ""
        inner = f'<div class="hb-unfinished">{picture}</div>'
    else:
        words = {"queued": "Waiting", "failed": "Failed", "cancelled": "Stopped", "gone": "Expired"}
        inner = f'<div class="hb-unfinished hb-{view.status}"><span>{words[view.status]}</span></div>'
    return f'<div class="hb-frame{pixelated}" style="{shape}">{label}{inner}</div>'


def _state(view: VideoView) -> str:
    """What is going on with a video that is not finished."""
    if view.status == "queued":
        ahead = "next in line" if view.ahead == 0 else f"{view.ahead} before it"
        return f'<p class="hb-state">Waiting{"" if view.ahead is None else ": " + ahead}</p>'
    if view.status == "running":
        time = "" if view.seconds is None else f" · {_duration(view.seconds)}"
        return (
            f'<p class="hb-state">Step {view.step} of {view.num_steps}{time}</p>'
            f'<progress max="{view.num_steps}" value="{view.step}" '
            f'aria-label="Steps done of video {view.recipe.seed}"></progress>'
        )
    if view.status == "failed":
        return f'<p class="hb-state hb-error"><b>Failed:</b> {escape(view.error)}</p>'
    if view.status == "cancelled":
        return '<p class="hb-state">Stopped. Nothing more is computed for it.</p>'
    if view.status == "gone":
        return '<p class="hb-state">The server has cleared this file away; its settings are still here.</p>'
    return ""


def verdict(judgement: Judgement, *, compact: bool = False) -> str:
    """The oracle's verdict: each attribute by name with a sign that does not rest on colour alone.

    Args:
        judgement: of one video.
        compact: the count alone, where there is one.
    """
    if not judgement.checks:
        return f'<p class="hb-state">No verdict: {escape(judgement.reason)}</p>'
    asked_for = [check for check in judgement.checks if check.is_right is not None]
    hits = sum(check.is_right is True for check in asked_for)
    if compact:
        if not asked_for:
            return ""
        kind = "right" if hits == len(asked_for) else "wrong"
        return f'<p><span class="hb-check hb-{kind}">oracle: {hits} of {len(asked_for)}</span></p>'
    chips = []
    for check in judgement.checks:
        kind = {True: "right", False: "wrong", None: "seen"}[check.is_right]
        sign = {True: "✓", False: "✗", None: "·"}[check.is_right]
        asked = "" if check.is_right is not False else f" <small>asked: {escape(check.asked or '')}</small>"
        chips.append(
            f'<li class="hb-check hb-{kind}"><span aria-hidden="true">{sign}</span> '
            f"<small>{_WORDS[check.name]}</small> {escape(check.seen)}{asked}</li>"
        )
    title = f"The oracle sees {hits} of {len(asked_for)} as asked" if asked_for else "What the oracle sees"
    reason = f'<p class="hb-reason">{escape(judgement.reason)}</p>' if judgement.reason else ""
    return f'<div class="hb-verdict"><p>{title}</p><ul>{"".join(chips)}</ul>{reason}</div>'


def _code(recipe: Recipe) -> str:
    """Both texts; the buttons above copy them."""
    blocks = (("command", "Command", as_command(recipe)), ("python", "Python", as_python(recipe)))
    shown = "".join(
        f'<pre tabindex="0" aria-label="{name}" data-code="{kind}">{escape(text)}</pre>'
        for kind, name, text in blocks
    )
    return f"<details><summary>Show the code</summary>{shown}</details>"


def _actions(view: VideoView, *, compact: bool) -> str:
    seed = view.recipe.seed
    name = f"hummingbird-{seed}-{view.id[-6:]}"
    parts = []
    if view.status == "done":
        for suffix in ("mp4", "gif"):
            parts.append(
                f'<a class="hb-button" href="{escape(view.url)}.{suffix}" download="{escape(name)}.{suffix}" '
                f'aria-label="Download {suffix}, seed {seed}"><span aria-hidden="true">↓</span> {suffix}</a>'
            )
    if view.status in ("done", "gone"):
        parts.append('<button type="button" class="hb-button" data-copy="python">Copy as Python</button>')
        parts.append('<button type="button" class="hb-button" data-copy="command">Copy as command</button>')
    parts.append(
        f'<button type="button" class="hb-button" data-action="reuse" data-id="{escape(view.id)}">'
        "Use these settings</button>"
    )
    if compact:
        parts.append(
            f'<button type="button" class="hb-button" data-action="remove" data-id="{escape(view.id)}" '
            f'aria-label="Remove the video with seed {seed}">Remove</button>'
        )
    return f'<div class="hb-actions">{"".join(parts)}</div>'


def card(view: VideoView, *, compact: bool = False) -> str:
    """One video with everything that belongs to it.

    Args:
        view: the video. It plays by itself, unless the browser is asked for less motion.
        compact: for the list of earlier ones: smaller, at rest, and with a button that takes it off the list.
    """
    is_kept = view.status in ("done", "gone")
    judged = verdict(view.judgement, compact=compact) if view.judgement and view.status == "done" else ""
    more = f"{_actions(view, compact=compact)}{_code(view.recipe) if is_kept else ''}"
    if compact:
        more = f"<details><summary>More</summary>{more}</details>"
    return (
        f'<article class="hb-card hb-is-{view.status}{" hb-compact" if compact else ""}" '
        f'data-job="{escape(view.id)}">{_frame(view, compact=compact)}'
        f'<div class="hb-body">{_state(view)}<p class="hb-prompt">{escape(view.recipe.prompt)}</p>'
        f'{_badges(view)}<p class="hb-facts">{_facts(view)}</p>{judged}{more}</div></article>'
    )


def history(views: Sequence[VideoView]) -> str:
    """All videos of this browser, newest first."""
    if not views:
        return '<p class="hb-quiet">Videos that you make in this browser are kept here.</p>'
    return f'<div class="hb-grid">{"".join(card(view, compact=True) for view in views)}</div>'


def empty(text: str) -> str:
    """Stands where the first video will be."""
    return f'<div class="hb-empty">{BIRD}<p>{escape(text)}</p></div>'


BIRD = (
    '<svg class="hb-bird" viewBox="0 0 64 64" aria-hidden="true" focusable="false">'
    '<path class="hb-wing" d="M30 30 C24 14 14 7 5 6 C9 18 15 28 26 35 Z"/>'
    '<path class="hb-wing2" d="M33 28 C34 14 41 6 50 2 C51 14 47 24 38 32 Z"/>'
    '<path class="hb-tail" d="M25 40 C17 46 11 53 8 62 C19 58 26 52 31 44 Z"/>'
    '<path class="hb-belly" d="M24 40 C22 31 30 24 39 23 C43 22.5 47 23.5 49 26 L62 27.5 L49 29.5 '
    'C48 38 38 47 28 46 C25 45 24.5 43 24 40 Z"/>'
    '<circle class="hb-eye" cx="45" cy="26.5" r="1.4"/></svg>'
)
