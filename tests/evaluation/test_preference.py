"""The page hides whose a video is, takes answers by keyboard, and they become a sign test."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hummingbird.cli import main
from hummingbird.evaluation.preference import judge_answers, make_page
from hummingbird.video_io import read_video, write_video

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
OPTIONS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PROMPTS = ["a dark room", "a <script>alert(1)</script> lamp", "a third prompt", "a fourth", "a fifth"]
LEVELS = {"secret-dark": 40, "secret-bright": 200}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of five pairs; a's videos are dark, b's bright, and they come in different formats."""
    root = tmp_path_factory.mktemp("page")
    for number in range(6):  # one more than there are prompts
        for name, suffix in (("secret-dark", "mp4"), ("secret-bright", "gif")):
            frames = np.full((4, 32, 48, 3), LEVELS[name], np.uint8)
            frames[:, :, : 4 * number + 4] = 0
            write_video(frames, root / name / f"{number}.{suffix}", 8)
    sides = [(name, root / name) for name in LEVELS]
    return make_page(sides[0], sides[1], PROMPTS, root / "to", seed=3)


def key_of(page: Path) -> dict[str, Any]:
    return json.loads((page.parent / "key.json").read_text())


def videos_of(page: Path) -> list[bytes]:
    return [
        base64.b64decode(text) for text in re.findall(r"data:video/mp4;base64,([^\"]+)", page.read_text())
    ]


def test_the_page_does_not_tell_whose_a_video_is(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert "secret" not in text
    assert "<script>alert" not in text
    assert "http://" not in text.replace("http-equiv", "")
    videos = videos_of(page)
    assert len(videos) == 10
    key = key_of(page)
    assert sorted(pair["prompt"] for pair in key["pairs"]) == [0, 1, 2, 3, 4]
    assert {pair["left"] for pair in key["pairs"]} == {"a", "b"}
    for number, pair in enumerate(key["pairs"]):
        (tmp_path / "x.mp4").write_bytes(videos[2 * number])
        clip = read_video(tmp_path / "x.mp4")
        level = float(np.median(clip.frames[:, :, 40:]))
        assert abs(level - (40 if pair["left"] == "a" else 200)) < 6
        black = float((clip.frames[0, 16, :, 0] < 20).mean())
        assert black == pytest.approx((4 * pair["prompt"] + 4) / 48, abs=0.05)


def test_the_same_call_gives_the_same_page_and_another_seed_another_order(page: Path, tmp_path: Path) -> None:
    root = page.parents[1]
    sides = [(name, root / name) for name in LEVELS]
    again = make_page(sides[0], sides[1], PROMPTS, tmp_path / "same", seed=3)
    assert key_of(again) == key_of(page)
    other = make_page(sides[0], sides[1], PROMPTS, tmp_path / "other", seed=4)
    assert key_of(other)["pairs"] != key_of(page)["pairs"]
    assert key_of(other)["page"] != key_of(page)["page"]


def answers_file(page: Path, folder: Path, winners: dict[int, str], name: str = "answers.json") -> Path:
    """Answers that give these winners, by the number of the pair."""
    key = key_of(page)
    chosen = {}
    for pair, winner in winners.items():
        left = key["pairs"][pair]["left"]
        chosen[str(pair)] = "tie" if winner == "tie" else "left" if winner == left else "right"
    path = folder / name
    path.write_text(json.dumps({"format": 1, "page": key["page"], "answers": chosen}))
    return path


def test_answers_are_joined_with_the_key(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = answers_file(page, tmp_path, {0: "a", 1: "a", 2: "b", 3: "tie"})
    assert main(["compare", "--results", str(file), "--to", str(page.parent), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["test"] == {
        "name": "two-sided sign test, ties left out", "wins_a": 2, "wins_b": 1, "ties": 1, "p_value": 1.0
    }  # fmt: skip
    assert (result["a"], result["b"], result["unanswered"]) == ("secret-dark", "secret-bright", 1)
    assert result["share_a"] == pytest.approx(2 / 3, abs=1e-6)
    stored = json.loads((page.parent / "report.json").read_text())
    assert stored == result
    shown = (page.parent / "report.html").read_text()
    assert "secret-dark preferred for 2, neither for 1, secret-bright for 1" in shown
    assert shown.count("data:video/mp4;base64,") == 10
    assert shown.count(">preferred<") == 3 + 1  # of the decided prompts, and the table's head
    assert "<script>" not in shown


def test_a_prompt_counts_once_however_many_people_saw_it(page: Path, tmp_path: Path) -> None:
    files = [
        answers_file(page, tmp_path, {0: "a", 1: "a", 2: "b"}, "1.json"),
        answers_file(page, tmp_path, {0: "a", 1: "b", 2: "tie"}, "2.json"),
        answers_file(page, tmp_path, {0: "b"}, "3.json"),
    ]
    result = judge_answers(files, page.parent)
    test = result["test"]
    assert (test["wins_a"], test["wins_b"], test["ties"], result["unanswered"]) == (1, 1, 1, 2)
    assert result["raters"][1] == {"file": "2.json", "a": 1, "b": 1, "tie": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page": "0" * 16}, "answers are of page"),
        ({"answers": {"99": "left"}}, "a pair below 5"),
        ({"answers": {"0": "both"}}, "one of left, right, tie"),
        ({"answers": {"-1": "left"}}, "a pair below 5"),
        ({"answers": []}, "expected answers saved by a page"),
        ({"format": 9}, "expected answers saved by a page"),
    ],
)
def test_other_files_are_refused(page: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = answers_file(page, tmp_path, {0: "a"})
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        judge_answers([file], page.parent)


def test_what_makes_no_page_is_refused(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = page.parents[1]
    a, b = ((name, root / name) for name in LEVELS)
    with pytest.raises(ValueError, match="6 videos for 7 prompts"):
        make_page(a, b, ["x"] * 7, tmp_path)
    with pytest.raises(ValueError, match="twice"):
        make_page(a, a, ["x"], tmp_path)
    (tmp_path / "key.json").write_text("{}")
    with pytest.raises(ValueError, match="expected the key"):
        judge_answers([tmp_path / "x.json"], tmp_path)
    assert main(["compare", "--results", str(tmp_path / "none.json"), "--to", str(page.parent)]) == 1
    assert "no file" in capsys.readouterr().err
    for bad in (["compare"], ["compare", "a", "b"], ["compare", "a", "--prompts", "x", "--to", "y"]):
        with pytest.raises(SystemExit):
            main(bad)


def test_the_command_makes_a_page_of_a_model_and_a_folder(
    tiny_model: Path, page: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    folder = page.parents[1] / "secret-dark"
    arguments = ["compare", f"{tiny_model}@1", str(folder), "--prompts", str(prompts), "--device", "cpu"]
    assert main([*arguments, "--to", str(tmp_path / "to")]) == 0
    key = key_of(tmp_path / "to" / "compare.html")
    assert (key["a"], key["b"], key["prompts"]) == (
        f"{tiny_model}@1",
        str(folder),
        ["a red circle", "a blue square"],
    )
    assert len(videos_of(tmp_path / "to" / "compare.html")) == 4
    assert sorted(path.name for path in (tmp_path / "to" / "samples" / "a").glob("*.mp4")) == [
        "0000.mp4",
        "0001.mp4",
    ]


# -------------------------------------------------------------------------------------- in a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS)
        yield started
        started.close()


def test_a_person_answers_by_keyboard_and_hands_back_a_file(browser: Any, page: Path, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800}, accept_downloads=True, offline=True)
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(page.as_uri())
    key = key_of(page)
    assert tab.inner_text("#place") == "Pair 1 of 5, 0 answered"
    assert tab.inner_text(".pair.now .prompt") == PROMPTS[key["pairs"][0]["prompt"]]
    # Both videos play, side by side, within the screen.
    state = "[...document.querySelectorAll('.pair.now video')]"
    state += ".map((v) => [v.error && v.error.message, v.paused, v.videoWidth, v.played.length > 0])"
    for _ in range(300):  # the page's policy forbids playwright's own way of waiting
        if (found := tab.evaluate(state)) == [[None, False, 48, True]] * 2:
            break
        tab.wait_for_timeout(100)
    assert found == [[None, False, 48, True]] * 2
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    visible = tab.inner_text("body")
    assert "secret" not in visible
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowUp")
    assert tab.inner_text("#place") == "Pair 3 of 5, 3 answered"
    assert "chosen" in tab.get_attribute("#tie", "class")
    tab.keyboard.press("ArrowLeft")  # another mind
    # Chromium hands what is stored to a process of its own, and what is loaded before may see nothing of it:
    # what this tab has stored is read here and given to the other one below.
    name = f"hummingbird-compare-{key['page']}"
    kept = tab.evaluate("name => localStorage.getItem(name)", name)
    tab.reload()
    assert tab.inner_text("#place") == "Pair 4 of 5, 3 answered"
    # A closed tab loses nothing, either: what is stored brings another there.
    later = browser.new_context()
    later.add_init_script(f"localStorage.setItem({json.dumps(name)}, {json.dumps(kept)})")
    another = later.new_page()
    another.goto(page.as_uri())
    assert another.inner_text("#place") == "Pair 4 of 5, 3 answered"
    later.close()
    tab.click(".pair.now [data-choice=right]")
    tab.keyboard.press("n")
    assert tab.inner_text("#left-over").startswith("1 pairs have no answer")
    with tab.expect_download() as download:
        tab.click("#end .download")
    file = tmp_path / "answers.json"
    download.value.save_as(file)
    context.close()
    assert said == []
    assert json.loads(file.read_text()) == {
        "format": 1, "page": key["page"], "answers": {"0": "left", "1": "right", "2": "left", "3": "right"}
    }  # fmt: skip
    sides = [key["pairs"][number]["left"] for number in range(4)]
    wins_a = sum(side == ("a" if number in (0, 2) else "b") for number, side in enumerate(sides))
    result = judge_answers([file], page.parent)
    assert (result["test"]["wins_a"], result["test"]["wins_b"], result["unanswered"]) == (
        wins_a,
        4 - wins_a,
        1,
    )
