"""The page on which people choose between two videos without knowing whose they are; the result's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hummingbird.evaluation.report import (
    STYLE,
    VideoShelf,
    environment_section,
    interval_bar,
    percent,
    scroll,
    tile,
)
from hummingbird.page import Html, bar, data_uri, element, page, table

__all__ = ["render_page", "render_result"]

_SHOWN_PAIRS = 12

_STYLE = """
body { max-width: 70rem }
.pair { display: none } .pair.now { display: block }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin: 1rem 0 }
.side { font: inherit; color: inherit; padding: 0; cursor: pointer; overflow: hidden; border-width: 3px }
.side video { display: block; width: 100%; max-height: 62vh; object-fit: contain; background: #000;
  image-rendering: auto }
.side span { display: block; padding: .5rem }
.side.chosen { border-color: var(--kept) }
.side:focus-visible, .tools button:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px }
.prompt { font-size: 1.2rem; margin: .8rem 0; max-width: none }
.tools { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center }
.tools button { font: inherit; padding: .5rem .9rem; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); color: var(--ink); cursor: pointer }
.tools button.chosen { border-color: var(--kept); font-weight: 600 }
kbd { font: 600 .8em ui-monospace, monospace; border: 1px solid var(--line); border-radius: 4px;
  padding: .1em .4em; background: var(--track); color: var(--ink) }
#end { display: none } .done #end { display: block } .done #task { display: none }
progress { width: 100%; accent-color: var(--kept) }
"""

# Answers live in localStorage under the page's own number until they are downloaded: a closed tab loses none.
# The browser writes that when it likes, or never in a private window; history.state outlives a reload.
_SCRIPT = """
"use strict";
(() => {
  const page = document.body.firstElementChild.dataset.page;
  const pairs = [...document.querySelectorAll(".pair")];
  const store = "hummingbird-compare-" + page;
  let answers = {};
  try { answers = JSON.parse(localStorage.getItem(store)) || {}; } catch (error) { /* see save */ }
  if (history.state && history.state.page === page) answers = history.state.answers;
  let now = pairs.findIndex((pair, index) => !(index in answers));
  if (now < 0) now = pairs.length;

  const byId = (id) => document.getElementById(id);
  function save() {
    history.replaceState({page: page, answers: answers}, "");
    try { localStorage.setItem(store, JSON.stringify(answers)); } catch (error) { /* private windows */ }
  }
  function show() {
    const count = Object.keys(answers).length;
    document.body.classList.toggle("done", now >= pairs.length);
    pairs.forEach((pair, index) => {
      const active = index === now;
      pair.classList.toggle("now", active);
      for (const video of pair.querySelectorAll("video")) {
        if (active) {
          if (!video.src) video.src = video.dataset.src;
          video.currentTime = 0;
          video.play().catch(() => {});
        } else {
          video.pause();
        }
      }
      for (const button of pair.querySelectorAll("[data-choice]"))
        button.classList.toggle("chosen", answers[index] === button.dataset.choice);
    });
    byId("bar").value = count;
    const place = now < pairs.length ? "Pair " + (now + 1) + " of " + pairs.length + ", " : "";
    byId("place").textContent = place + count + " answered";
    byId("tie").classList.toggle("chosen", answers[now] === "tie");
    byId("back").disabled = now === 0;
    byId("left-over").textContent = count < pairs.length
      ? (pairs.length - count) + " pairs have no answer yet; go back to give them one." : "";
  }
  function choose(choice) {
    if (now >= pairs.length) return;
    answers[now] = choice;
    save();
    go(1);
  }
  function go(step) {
    now = Math.min(Math.max(now + step, 0), pairs.length);
    show();
  }
  function replay() {
    if (now >= pairs.length) return;
    for (const video of pairs[now].querySelectorAll("video")) { video.currentTime = 0; video.play(); }
  }
  function download() {
    const text = JSON.stringify({format: 1, page: page, answers: answers}, null, 2);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    link.download = "answers-" + page + ".json";
    link.click();
    URL.revokeObjectURL(link.href);
  }
  const keys = {
    ArrowLeft: () => choose("left"), ArrowRight: () => choose("right"), ArrowDown: () => choose("tie"),
    "1": () => choose("left"), "2": () => choose("right"), "0": () => choose("tie"),
    Backspace: () => go(-1), ArrowUp: () => go(-1), n: () => go(1), r: replay, d: download,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  for (const button of document.querySelectorAll("[data-choice]"))
    button.addEventListener("click", () => choose(button.dataset.choice));
  byId("back").addEventListener("click", () => go(-1));
  byId("next").addEventListener("click", () => go(1));
  byId("again").addEventListener("click", () => go(-1));
  for (const button of document.querySelectorAll(".download")) button.addEventListener("click", download);
  show();
})();
"""


def render_page(page_id: str, pairs: Sequence[tuple[str, bytes, bytes]]) -> str:
    """The page that asks; it holds nothing that tells whose a video is.

    Args:
        page_id: joins answers with the key.
        pairs: (prompt, left video, right video), H.264 in .mp4.
    """
    title = "Which video is better?"
    task = element(
        "div",
        element("h1", title),
        element(
            "p",
            "Choose the video that shows the prompt better and looks better. ",
            element("kbd", "←"),
            " left, ",
            element("kbd", "→"),
            " right, ",
            element("kbd", "↓"),
            " neither; ",
            element("kbd", "↑"),
            " back, ",
            element("kbd", "r"),
            " replay, ",
            element("kbd", "n"),
            " skip, ",
            element("kbd", "d"),
            " download answers.",
            class_="soft",
        ),
        element("progress", id="bar", max=len(pairs), value=0, aria_label="pairs answered"),
        *(_pair(number, *pair) for number, pair in enumerate(pairs)),
        element(
            "div",
            element("button", "Neither is better", type="button", id="tie", data_choice="tie"),
            element("button", "Back", type="button", id="back"),
            element("button", "Skip", type="button", id="next"),
            element("button", "Download answers", type="button", class_="download"),
            class_="tools",
        ),
        id="task",
    )
    end = element(
        "div",
        element("h1", "Thank you"),
        element("p", "That was the last pair. Download the answers and hand the file back."),
        element("p", id="left-over", class_="soft"),
        element(
            "div",
            element("button", "Download answers", type="button", class_="download"),
            element("button", "Back", type="button", id="again"),
            class_="tools",
        ),
        id="end",
    )
    return page(
        title,
        element(
            "main",
            task,
            end,
            element("p", id="place", class_="soft", role="status"),
            element("noscript", "This page needs JavaScript: it keeps your answers, on this machine only."),
            data_page=page_id,
        ),
        style=_STYLE,
        script=_SCRIPT,
        has_videos=True,
    )


def _pair(number: int, prompt: str, left: bytes, right: bytes) -> Html:
    sides = [
        element(
            "button",
            element("video", data_src=data_uri(video, "video/mp4"), loop=True, muted=True, playsinline=True),
            element("span", name),
            type="button",
            class_="side card",
            data_choice=name.lower(),
        )
        for name, video in (("Left", left), ("Right", right))
    ]
    return element(
        "section",
        element("p", prompt, class_="prompt"),
        element("div", *sides, class_="sides"),
        class_="pair",
    )


def render_result(result: Mapping[str, Any], videos: Mapping[int, tuple[Path, Path]]) -> str:
    """The page of the result, where names are told.

    Args:
        result: as ``judge_answers`` returns it.
        videos: number of a pair -> a's and b's video.
    """
    test, a, b = result["test"], result["a"], result["b"]
    p_value = test["p_value"]
    said = "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"
    decided = test["wins_a"] + test["wins_b"]
    title = f"{a} against {b}: what people prefer"
    rows = []
    for row in result["prompts"]:
        winner = {"a": a, "b": b, "tie": "neither", None: "no answer"}[row["winner"]]
        rows.append((row["prompt"], winner, row["votes"]["a"], row["votes"]["b"], row["votes"]["tie"]))
    parts = [("kept", test["wins_a"]), ("track", test["ties"]), ("dropped", test["wins_b"])]
    label = f"{a} preferred for {test['wins_a']}, neither for {test['ties']}, {b} for {test['wins_b']}"
    share = None
    if decided:
        low, high = result["interval_95"]
        share = element(
            "p",
            f"Of the {decided} decided prompts {percent(result['share_a'])} went to {a} (95% interval, "
            f"Wilson's: {percent(low)} to {percent(high)}).",
            interval_bar(result["share_a"], low, high),
        )
    return page(
        title,
        element("h1", title),
        element(
            "div",
            tile(test["wins_a"], f"prompts for {a}"),
            tile(test["wins_b"], f"prompts for {b}"),
            tile(test["ties"], "ties"),
            tile(result["unanswered"], "without an answer"),
            tile(said, "p, two-sided sign test without ties"),
            tile(result["num_raters"], "people"),
            class_="tiles",
        ),
        element(
            "div",
            bar(parts, max(1, decided + test["ties"]), label),
            element("p", label),
            share,
            class_="card",
        ),
        element("h2", "Prompt by prompt"),
        element(
            "div",
            scroll(table(("prompt", "preferred", f"for {a}", f"for {b}", "ties"), rows)),
            class_="card wide",
        ),
        element("h2", "People"),
        element(
            "div",
            scroll(
                table(
                    ("answers", f"for {a}", f"for {b}", "ties"),
                    [(rater["file"], rater["a"], rater["b"], rater["tie"]) for rater in result["raters"]],
                )
            ),
            class_="card wide",
        ),
        *_pairs_shown(result, videos),
        environment_section(result["environment"]),
        style=STYLE,
        has_videos=True,
    )


def _pairs_shown(result: Mapping[str, Any], videos: Mapping[int, tuple[Path, Path]]) -> list[Html | None]:
    """The first pairs with names and what was preferred."""
    shelf = VideoShelf()
    parts: list[Html | None] = [element("h2", "Videos")]
    for row in result["prompts"][:_SHOWN_PAIRS]:
        figures = []
        for letter, path in zip("ab", videos[row["pair"]], strict=True):
            said = element("span", "preferred", class_="good") if row["winner"] == letter else None
            figures.append(shelf.figure(path, result[letter], said))
        parts.append(element("h3", row["prompt"], class_="sheet"))
        parts.append(element("div", *figures, class_="media"))
    return [*parts, shelf.note()]
