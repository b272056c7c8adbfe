"""``python -m data_pipeline report``: what the page says, also when files are missing, damaged or hostile."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.__main__ import main
from data_pipeline.journal import Journal, read_values
from data_pipeline.pipeline import PipelineConfig
from data_pipeline.progress import PACE_FILE, Progress, read_pace
from data_pipeline.report.build import write_report
from data_pipeline.report.pictures import Look, draw, draw_all
from data_pipeline.report.survey import survey
from hummingbird.config import load_config, save_config
from hummingbird.manifest import ClipRecord, ManifestError, read_manifest, schema, write_manifest
from hummingbird.video_io import VideoError, read_video, write_video
from tests.data_pipeline.conftest import TINY_CONFIG, pan

Capture = pytest.CaptureFixture[str]

_TEXT = (
    "h1",
    "h2",
    "h3",
    "p",
    "nav",
    "a",
    "b",
    "span",
    "ul",
    "li",
    "dl",
    "dt",
    "dd",
    "summary",
    "pre",
    "details",
)
_PARTS = ("html", "head", "meta", "title", "style", "body", "header", "main", "section", "div")
_OTHERS = ("figure", "figcaption", "img", "table", "caption", "thead", "tbody", "tr", "th", "td")
TAGS = frozenset({*_TEXT, *_PARTS, *_OTHERS, "svg", "g", "rect", "line", "text", "desc"})


class Page(HTMLParser):
    """A page as a browser reads it: elements with their attributes, text by element."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._style = False
        self.feed(document)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and all(attributes.get(key.rstrip("_")) == value for key, value in wanted.items())
        ]

    @property
    def pictures(self) -> list[PIL.Image.Image]:
        data = [image["src"].removeprefix("data:image/jpeg;base64,") for image in self.all("img")]
        return [PIL.Image.open(io.BytesIO(base64.b64decode(text, validate=True))) for text in data]


def check_refers_to_nothing(page: Page) -> None:
    """No script, no handler, no address outside of the page, no element that nobody thought of."""
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert len(ids) == sum("id" in attributes for _, attributes in page.elements), "an id came twice"
    for tag, attributes in page.elements:
        assert tag in TAGS
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("style", "srcset", "action", "xlink:href", "background"), (tag, name)
            if name == "href":
                assert value.startswith("#"), value
                assert value[1:] in ids
            elif name == "src":
                assert re.fullmatch(r"data:image/jpeg;base64,[A-Za-z0-9+/]+=*", value)
            elif tag != "meta" and name not in ("alt", "aria-label"):
                assert "//" not in value, (tag, name, value)


@pytest.fixture(scope="module")
def curated(tiny_input: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run, as it was left; tests that change it copy it."""
    output = tmp_path_factory.mktemp("curated") / "out"
    assert main(["run", str(TINY_CONFIG), "--input", str(tiny_input), "--output", str(output)]) == 0
    return output


@pytest.fixture
def own(curated: Path, tmp_path: Path) -> Path:
    """A copy of a run's output."""
    return Path(shutil.copytree(curated, tmp_path / "own"))


def read(output: Path) -> Page:
    return Page((output / "report.html").read_text(encoding="utf-8"))


def clip(name: str, **values: object) -> ClipRecord:
    span = {"start_s": 0.0, "end_s": 2.0, "num_frames": 24, "fps": 12.0, "width": 96, "height": 64}
    return ClipRecord(**{"clip_id": name, "source": f"{name}.mp4", "status": "kept", **span, **values})  # type: ignore[arg-type]


def manifest(output: Path, records: list[ClipRecord]) -> Path:
    output.mkdir(parents=True, exist_ok=True)
    names = sorted({name for record in records for name in record.scores})
    write_manifest(records, output / "manifest.parquet", score_names=names)
    return output


# --- what it says ------------------------------------------------------------------------------------------


def test_the_page_of_a_run_has_everything(curated: Path, capsys: Capture) -> None:
    assert main(["report", str(curated), "--json"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out.splitlines()[-1])
    rows = list(read_manifest(curated / "manifest.parquet"))
    kept = sum(row.status == "kept" for row in rows)
    assert captured.err == ""
    assert (answer["sources"], answer["rows"], answer["kept"], answer["error"]) == (8, 8, kept, 1)
    assert (answer["pictures"], answer["pictures_missing"], answer["notes"]) == (7, 0, [])
    assert answer["size_bytes"] == (curated / "report.html").stat().st_size < 400_000
    page = read(curated)
    check_refers_to_nothing(page)
    for heading in ("From sources to clips", "Scores and thresholds", "Clips", "Captions", "Errors by cause"):
        assert heading in page.text
    # The funnel: from the sources down to what was written.
    labels = [attributes["aria-label"] for attributes in page.all("svg", class_="bar")]
    assert labels[:3] == ["sources: 8 of 8", "readable: 8 of 8", "with clips: 7 of 8"]
    assert "clips: 7 of 7" in labels
    assert f"after write: {kept} of 7" in labels
    assert "frozen 1" in page.text
    assert "shots: unreadable 1 rows broken.mp4" in page.text
    # Every score that any clip has is drawn, the others are named.
    for name in {name for row in rows for name in row.scores}:
        assert any(text == name for text in page.texts)
    assert "Without any value: quality, quality_technical, quality_aesthetic." in page.text
    assert "a pan over texture 3" in page.text
    for phase in ("shots, sources/s", "score, clips/s", "write, clips/s"):
        assert f"{phase} over seconds" in page.text
    assert "What workers spent" in page.text


def test_pictures_show_the_clips(curated: Path, tiny_input: Path) -> None:
    """Four frames in the order of reading, each the one on the screen in the middle of its quarter."""
    write_report(curated)
    page = read(curated)
    shown = {image["alt"]: picture for image, picture in zip(page.all("img"), page.pictures, strict=True)}
    picture = shown["Four frames of sub/still.mp4"].convert("RGB")
    assert picture.size == (384, 256)
    large = PIL.Image.fromarray(pan(6)[0]).resize((192, 128), PIL.Image.Resampling.BICUBIC)
    still = np.asarray(large, float)
    for box in ((0, 0, 192, 128), (192, 0, 384, 128), (0, 128, 192, 256), (192, 128, 384, 256)):
        assert np.abs(np.asarray(picture.crop(box), float) - still).mean() < 12
    # From a shard, and it moves: the frame of the source that each tile looks most like.
    frames = read_video(tiny_input / "pan3.mp4").frames
    tiles = np.asarray(shown["Four frames of pan3.mp4"].convert("RGB").resize((192, 2 * 72)), float)
    small = [np.asarray(PIL.Image.fromarray(frame).resize((96, 72)), float) for frame in frames]
    nearest = [
        int(np.argmin([np.abs(tile - image).mean() for image in small]))
        for tile in (tiles[:72, :96], tiles[:72, 96:], tiles[72:, :96], tiles[72:, 96:])
    ]
    expected = [(index + 0.5) * len(frames) / 4 for index in range(4)]
    # The shard has 8 of the 12 frames a second: nearer to its own quarter's middle than to the next one's.
    assert np.abs(np.array(nearest) - expected).max() < len(frames) / 8, (nearest, expected)


def test_thresholds_come_from_the_settings_of_the_run(own: Path) -> None:
    rows = list(read_manifest(own / "manifest.parquet"))
    rows = [replace(row, scores={**row.scores, "quality": 0.1 * index}) for index, row in enumerate(rows)]
    names = sorted({name for row in rows for name in row.scores})
    write_manifest(rows, own / "manifest.parquet", score_names=names)
    changes = {"motion.max-jitter": "0.875", "motion.min-mean": "None", "quality.top-percent": "60"}
    flags = [word for name, value in changes.items() for word in (f"--{name}", value)]
    config = load_config(PipelineConfig, own / "config.yaml", ["--quality.model", "nano-vqa", *flags])
    save_config(config, own / "config.yaml")
    (own / "thresholds.json").write_text(json.dumps({"quality": {"threshold": 0.25}}))
    write_report(own)
    charts = descriptions(own)
    assert "max 0.875" in charts["motion_jitter"]
    assert "min" not in charts["motion_mean"]
    assert "max 30" in charts["motion_mean"]
    assert "best 60% from 0.25" in charts["quality"]
    assert "min 8" in charts["basics_contrast"]
    assert "min 1;" in charts["duration_s"] + ";"
    assert "min" not in charts["basics_border"]  # its min_border says what a bar is, and refuses nothing


def descriptions(output: Path) -> dict[str, str]:
    """Description of each chart by its title."""
    document = (output / "report.html").read_text()
    found = re.findall(r'<title id="[^"]*">([^<]*)</title><desc id="[^"]*">([^<]*)</desc>', document)
    return dict(found)


def test_captions_before_and_after(tmp_path: Path) -> None:
    rows = [
        clip("a", caption="a dog runs", original_caption="dog stock footage 4k"),
        clip("b", caption="cat", original_caption="cat"),
        clip("c"),
    ]
    output = manifest(tmp_path / "out", rows)
    assert survey(output / "manifest.parquet").is_rewritten.tolist() == [True, False, False]
    write_report(output)
    text = read(output).text
    assert "2 of 3 rows have a caption; 1 differ from the one that came with the source" in text
    assert "before dog stock footage 4k after a dog runs" in text


def test_why_captions_were_not_rewritten(tmp_path: Path) -> None:
    rows = [
        clip("a", caption="a dog runs", original_caption="dog 4k", caption_source="rules"),
        clip("b", caption="cat", original_caption="cat", caption_note="refusal"),
        clip("c"),
    ]
    output = manifest(tmp_path / "out", rows)
    found = survey(output / "manifest.parquet")
    assert found.caption_sources == {"original": 2, "rules": 1}
    assert found.caption_notes == {"": 2, "refusal": 1}
    assert "caption_note" not in found.scores
    write_report(output)
    text = read(output).text
    assert "Caption from rows original 2 rules 1" in text
    assert "Not rewritten because rows refusal 1" in text
    assert "b.mp4 before cat after cat not rewritten refusal" in text


def test_numbers_of_a_large_manifest_are_those_of_its_rows(tmp_path: Path) -> None:
    """More rows than a batch or a row group holds; samples come from all of them, the same each time."""
    rng = np.random.default_rng(1)
    count = 60_000
    kinds = [
        ("kept", ""),
        ("dropped", "motion: static"),
        ("dropped", "basics: near-black"),
        ("error", "x: timeout"),
    ]
    choice, quality = rng.integers(0, 4, count), rng.uniform(size=count)

    def rows() -> Iterator[ClipRecord]:
        for index in range(count):
            status, reason = kinds[choice[index]]
            yield clip(
                f"c{index:06d}",
                source=f"{index // 3}.mp4",
                status=status,
                reason=reason,
                scores={"quality": float(quality[index])} if index % 5 else {},
                end_s=1.0,
            )

    path = tmp_path / "manifest.parquet"
    write_manifest(rows(), path)
    found = survey(path)
    assert found.num_sources == count // 3
    assert dict(zip(found.causes, found.counts, strict=True)) == {
        kind: int((choice == index).sum()) for index, kind in enumerate(kinds)
    }
    assert list(found.counts) == sorted(found.counts, reverse=True)
    assert found.seconds["kept"] == pytest.approx(float((choice == 0).sum()))
    values = found.column("quality")
    assert np.isnan(values[::5]).all()
    np.testing.assert_array_equal(values[1::5], quality[1::5])
    static = found.cause == found.causes.index(("dropped", "motion: static"))
    np.testing.assert_array_equal(static, choice == 1)
    sample = found.sample(static, 50)
    assert sample == survey(path).sample(static, 50) == sorted(set(sample))
    assert min(sample) < count / 5
    assert max(sample) > 4 * count / 5
    read_rows = found.rows([59_999, 3, 49_999, 50_000])
    assert {number: row["clip_id"] for number, row in read_rows.items()} == {
        number: f"c{number:06d}" for number in (3, 49_999, 50_000, 59_999)
    }


def test_best_and_worst_are_by_quality(tmp_path: Path) -> None:
    rows = [clip(f"c{index:02d}", scores={"quality": (index * 7 % 20) / 20}) for index in range(20)]
    rows.append(clip("unscored"))
    rows.append(clip("dropped", status="dropped", reason="text: watermark", scores={"quality": 0.99}))
    output = manifest(tmp_path / "out", rows)
    write_report(output)
    document = (output / "report.html").read_text()
    shown = document.split("Best of the kept")[1]
    best, worst, dropped = re.split("Worst of the kept|Dropped, text: watermark", shown)
    by_quality = sorted((row for row in rows[:20]), key=lambda row: -row.scores["quality"])
    assert re.findall(r"<b>(c\d\d)\.mp4", best) == [row.clip_id for row in by_quality[:8]]
    assert re.findall(r"<b>(c\d\d)\.mp4", worst) == [row.clip_id for row in by_quality[::-1][:8]]
    assert "<b>dropped.mp4</b>" in dropped
    assert "after text: 21 of 22" in document  # a stage that this version does not know


# --- the same, missing, hostile, broken --------------------------------------------------------------------


def test_the_same_files_make_the_same_page(curated: Path, tmp_path: Path) -> None:
    write_report(curated)
    first = (curated / "report.html").read_bytes()
    write_report(curated)
    assert (curated / "report.html").read_bytes() == first


def test_without_the_work_folder_only_the_times_are_missing(curated: Path, own: Path) -> None:
    write_report(curated)
    shutil.rmtree(own / "work")
    summary = write_report(own)
    assert (summary.num_pictures, summary.num_missing, summary.notes) == (7, 0, ())
    whole, without = ((folder / "report.html").read_text() for folder in (curated, own))
    assert "Nothing is noted of the time" in without
    name = f"{curated.name}", f"{own.name}"
    cut = [text.split('id="speed"')[0] for text in (whole.replace(*name), without.replace(*name))]
    assert cut[0] == cut[1]


def test_the_manifest_alone_is_enough(curated: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "alone"
    output.mkdir()
    shutil.copy(curated / "manifest.parquet", output)
    assert main(["report", str(output), "--json"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out.splitlines()[-1])
    assert (answer["pictures"], answer["pictures_missing"]) == (0, 7)
    assert "No thresholds" in captured.err
    page = read(output)
    check_refers_to_nothing(page)
    assert "no picture: it is not known where the run read its input; give --input" in page.text
    assert not page.all("line", class_="mark")
    assert sorted(path.name for path in output.iterdir()) == ["manifest.parquet", "report.html"]


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    output = manifest(tmp_path / "out", [])
    summary = write_report(output)
    assert (summary.num_rows, summary.num_sources) == (0, 0)
    page = read(output)
    check_refers_to_nothing(page)
    for words in ("No clip was measured", "No clips.", "No errors", "0 of 0 rows have a caption"):
        assert words in page.text
    sources_only = [ClipRecord(clip_id="x", source="x.mp4", status="error", reason="ingest: no usable file")]
    write_report(manifest(output, sources_only))
    assert "readable: 0 of 1" in (output / "report.html").read_text()


def test_missing_and_changed_files_become_words(own: Path, tiny_input: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(tiny_input, tmp_path / "elsewhere"))
    (elsewhere / "sub" / "still.mp4").write_bytes(b"no video any more")
    (own / "shards" / "000000.tar").unlink()
    (own / "shards" / "000001.tar").write_bytes(b"\0" * 512 + b"no archive")
    (elsewhere / "pan0.mp4").unlink()
    summary = write_report(own, elsewhere)
    text = read(own).text
    assert "no picture: still.mp4: cannot be" in text
    assert "no picture: 000001.tar has no" in text or "no picture: file could not be opened" in text
    assert "no picture: its source is not found in the input" in text
    assert str(tmp_path) not in "".join(
        re.findall(r'class="missing">([^<]*)', (own / "report.html").read_text())
    )
    assert summary.num_missing >= 4
    gone = write_report(own, tmp_path / "gone")
    assert len(gone.notes) == 1
    assert "no such file or folder" in gone.notes[0]
    assert gone.num_missing == 5


HOSTILE = '</div><img src="https://evil.example/x" onerror=alert(1)><script>//</script>\'"&\u202e\x07'


def test_hostile_text_is_shown_and_nothing_else(tmp_path: Path) -> None:
    rows = [
        clip(
            f"{status}{number}",
            source=f"{HOSTILE}{number}.mp4",
            status=status,
            reason="" if status == "kept" else f"{HOSTILE}{number}: {HOSTILE}",
            detail=HOSTILE * 30,
            caption=HOSTILE * 100,
            original_caption=f"before {HOSTILE}",
            shard="../../etc/passwd" if number else "/etc/passwd",
            scores={
                f"x{HOSTILE}": 1.7e308 * (-1) ** number,
                "quality": float("nan"),
                "motion_mean": float("inf"),
            },
        )
        for status in ("kept", "dropped", "error")
        for number in range(2)
    ]
    output = manifest(tmp_path / "out", rows)
    (output / "config.yaml").write_text(f"input: '{HOSTILE[:5]}'\n# {HOSTILE[:60]}\n")
    (output / "work").mkdir()
    pace = {"phase": HOSTILE, "unit": HOSTILE, "ended_at": 1e9, "seconds": 1.0, "done": 3}
    (output / "work" / PACE_FILE).write_text(json.dumps(pace) + "\n")
    journal = Journal(output / "work" / "score.journal")
    journal.add("k", {"seconds": {HOSTILE: 2.0}})
    journal.close()
    summary = write_report(output)
    assert (summary.num_pictures, summary.num_missing) == (0, 4)
    page = read(output)
    check_refers_to_nothing(page)
    shown = re.sub("[\u202e\x07]", "\ufffd", HOSTILE)
    assert page.text.count(shown) > 20
    assert HOSTILE not in page.text
    assert len((output / "report.html").read_bytes()) < 100_000


@pytest.mark.parametrize(
    ("shard", "words"),
    [("shards/gone.tar", "not found in the input"), ("../outside.tar", "not found in the input")],
)
def test_shards_outside_of_the_run_are_not_opened(shard: str, words: str, own: Path, tmp_path: Path) -> None:
    shutil.copy(own / "shards" / "000000.tar", tmp_path / "outside.tar")
    rows = [row for row in read_manifest(own / "manifest.parquet") if row.status == "kept"]
    first = next(row for row in rows if row.shard == "shards/000000.tar")
    write_manifest(
        [replace(first, shard=shard, source="gone.mp4")],
        own / "manifest.parquet",
        score_names=sorted(first.scores),
    )
    assert write_report(own).num_pictures == 0
    assert words in read(own).text


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "cut off":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "text":
        path.write_text("clip_id,source\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped":
        middle = bytearray(data)
        middle[8:400] = bytes(value ^ 0xFF for value in middle[8:400])
        path.write_bytes(middle)
    elif kind == "columns":
        pq.write_table(pa.table({"clip_id": ["x"]}), path)
    elif kind == "status":
        row = pa.Table.from_pylist([{"clip_id": "x", "source": "x", "status": "lost"}], schema=schema())
        pq.write_table(row, path)
    elif kind == "not UTF-8":
        row = pa.Table.from_pylist([{"clip_id": "x", "source": "x", "status": "kept"}], schema=schema())
        bad = pa.Array.from_buffers(
            pa.string(), 1, [*pa.array(["ab"]).buffers()[:2], pa.py_buffer(b"\xff\xfe")]
        )
        pq.write_table(row.set_column(1, "source", bad), path)


@pytest.mark.parametrize(
    "kind", ["cut off", "text", "empty", "flipped", "columns", "status", "not UTF-8", "gone"]
)
def test_a_manifest_that_cannot_be_read_is_one_line(kind: str, own: Path, capsys: Capture) -> None:
    path = own / "manifest.parquet"
    (own / "report.html").unlink(missing_ok=True)
    path.unlink() if kind == "gone" else damage(path, kind)
    assert main(["report", str(own)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not (own / "report.html").exists()


def test_bad_usage_is_status_2(own: Path, capsys: Capture) -> None:
    for words in (["report"], ["report", str(own), "--inptu", "x"], ["report", str(own), "--workers", "2"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
    assert "unknown '--workers'" in capsys.readouterr().err


# --- its parts ---------------------------------------------------------------------------------------------


def test_upright_clips_stand_side_by_side_and_long_shapes_are_bounded(tmp_path: Path) -> None:
    for size, expected in (
        ((96, 64), (384, 256)),
        ((64, 96), (384, 144)),
        ((16, 640), (384, 384)),
        ((640, 16), (384, 96)),
    ):
        width, height = size
        frames = np.full((8, height, width, 3), 90, np.uint8)
        path = write_video(frames, tmp_path / f"{width}x{height}.mp4", fps=8)
        data = draw(Look(path=path, start_s=0.0, end_s=1.0), tmp_path / "scratch.mp4")
        assert PIL.Image.open(io.BytesIO(data)).size == expected


def test_a_picture_of_nothing_is_an_error(tmp_path: Path) -> None:
    path = write_video(pan(0), tmp_path / "a.mp4", fps=12)
    with pytest.raises(VideoError, match=r"no frame decodes from 50\.00 to 51\.00 s"):
        draw(Look(path=path, start_s=50.0, end_s=51.0), tmp_path / "scratch.mp4")
    result = draw_all({3: Look(path=tmp_path / "none.mp4", start_s=0.0, end_s=1.0)})
    assert isinstance(result[3], str)
    assert result[3].startswith("no picture: none.mp4")
    assert draw_all({}) == {}


def test_the_pace_adds_up_over_runs_and_garbage_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / PACE_FILE
    for done_before, count in ((0, 3), (3, 4)):
        progress = Progress("score", 7, done_before, "clips", tmp_path)
        for _ in range(count):
            progress.add("kept")
        progress.close()
    with path.open("ab") as file:
        file.write(b'{"phase": "score", "unit": "clips", "ended_at": 1, "seconds": -1, "done": 100}\n')
        file.write(b'[1]\n{"phase": 1}\n\xff\n{"phase": "score", "un')
        file.write(b'{"seconds": 1' + b"0" * 10_000 + b"}\n")
        file.write(b'{"phase": "x", "unit": "y", "ended_at": 1, "seconds": 1, "done": 1e308}\n')
        file.write(b'{"phase": "x", "unit": "y", "ended_at": 1, "seconds": 1e-300, "done": 1}\n')
        file.write(b'{"phase": "x", "unit": "y", "ended_at": 1, "seconds": 1, "done": NaN}\n')
    paces = list(read_pace(path))
    assert sum(pace.done for pace in paces) == 7
    assert all(pace.phase == "score" and pace.unit == "clips" and pace.seconds > 0 for pace in paces)
    with pytest.raises(FileNotFoundError):
        next(read_pace(tmp_path / "none"))


def test_a_journal_can_be_read_while_a_run_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "score.journal"
    journal = Journal(path)
    journal.add("a", {"seconds": {"decode": 1.5}})
    journal.add("b", 2)
    with path.open("ab") as file:
        file.write(b"0badc0de c {}\n")
    size = path.stat().st_size
    assert list(read_values(path)) == [{"seconds": {"decode": 1.5}}, 2]
    assert path.stat().st_size == size
    journal.close()


def test_a_damaged_manifest_is_named_by_whoever_reads_it(own: Path) -> None:
    damage(own / "manifest.parquet", "flipped")
    with pytest.raises(ManifestError, match=r"manifest\.parquet"):
        list(read_manifest(own / "manifest.parquet"))
