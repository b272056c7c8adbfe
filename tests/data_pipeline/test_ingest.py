"""Every row of a list and every video of a folder is one source; what is dead says why and ends nothing."""

from __future__ import annotations

import csv
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.clip import Source
from data_pipeline.stages.ingest import IngestConfig, IngestError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(path: Path, config: IngestConfig | None = None) -> dict[str, Source]:
    sources = list((config or IngestConfig()).sources(path))
    assert len({source.source_id for source in sources}) == len(sources)
    for source in sources:
        assert (source.path is None) == (source.error is not None)
        source.source_id.encode()
        (source.caption or "").encode()
    return {source.source_id: source for source in sources}


def test_folder_is_walked_in_order_without_hidden_files(tmp_path: Path) -> None:
    names = ("b/2.MP4", "b/10.mkv", "a.webm", "c/d/e.ts", ".hidden.mp4", ".git/x.mp4", "notes.md", "a.jpg")
    touch(*(tmp_path / name for name in names))
    sources = found(tmp_path)
    assert list(sources) == ["a.webm", "b/10.mkv", "b/2.MP4", "c/d/e.ts"]
    assert sources["b/2.MP4"].path == tmp_path / "b/2.MP4"
    assert list(found(tmp_path, IngestConfig(any_suffix=True))) == [
        "a.jpg", "a.webm", "b/10.mkv", "b/2.MP4", "c/d/e.ts", "notes.md",
    ]  # fmt: skip
    assert list(found(tmp_path, IngestConfig(suffixes=(".ts",)))) == ["c/d/e.ts"]


def test_links_are_followed_to_files_inside_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root / "real.mp4", outside / "secret.mp4")
    (root / "inside.mp4").symlink_to(root / "real.mp4")
    (root / "out.mp4").symlink_to(outside / "secret.mp4")
    (root / "gone.mp4").symlink_to(root / "nothing.mp4")
    (root / "round.mp4").symlink_to(root / "round.mp4")
    (root / "folder").symlink_to(root, target_is_directory=True)
    os.mkfifo(root / "pipe.mp4")
    sources = found(root)
    assert sources["inside.mp4"].path == root / "real.mp4"
    assert "lies outside" in str(sources["out.mp4"].error)
    assert sources["gone.mp4"].error == "no such file"
    assert "not a" in str(sources["pipe.mp4"].error)
    assert sources["round.mp4"].error is not None
    assert len(sources) == 6


def test_names_that_are_not_utf8_stay_readable(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.mp4", "wb") as file:
        file.write(b"x")
    (source,) = found(tmp_path).values()
    assert source.source_id == "caf\\udce9.mp4"
    assert source.path is not None
    assert source.path.read_bytes() == b"x"


def test_captions_beside_the_video(tmp_path: Path) -> None:
    touch(
        *(
            tmp_path / f"{name}.mp4"
            for name in ("text", "json", "both", "none", "broken", "list", "latin", "big")
        )
    )
    (tmp_path / "text.txt").write_text("\ufeff a red bird \n", encoding="utf-8")
    (tmp_path / "json.json").write_text(json.dumps({"text": "a blue bird"}))
    (tmp_path / "both.txt").write_text("from text")
    (tmp_path / "both.json").write_text(json.dumps({"caption": "from json"}))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "big.txt").write_bytes(b"a" * 1_000_001)
    sources = found(tmp_path)
    captions = {name: source.caption for name, source in sources.items() if source.error is None}
    assert captions == {
        "text.mp4": "a red bird",
        "json.mp4": "a blue bird",
        "both.mp4": "from text",
        "none.mp4": None,
    }
    assert "broken.json: not JSON" in str(sources["broken.mp4"].error)
    assert "expected an object" in str(sources["list.mp4"].error)
    assert "not UTF-8 (byte 3)" in str(sources["latin.mp4"].error)
    assert "larger than" in str(sources["big.mp4"].error)
    assert {source.caption for source in found(tmp_path, IngestConfig(sidecar_captions=False)).values()} == {
        None
    }


def test_webvid_list_with_dead_rows(tmp_path: Path) -> None:
    touch(tmp_path / "videos/p1/11.mp4", tmp_path / "videos/22.mp4", tmp_path / "secret.mp4")
    rows = [
        ("11", "http://127.0.0.1:9/11.mp4", "PT00H00M08S", "p1", "Bird, flying \"high\""),
        ("22", "http://127.0.0.1:9/22.mp4", "PT00H00M08S", "p2", "Sea\nat night"),
        ("33", "http://127.0.0.1:9/33.mp4", "PT00H00M08S", "p3", "Never downloaded"),
        ("11", "http://127.0.0.1:9/11.mp4", "PT00H00M08S", "p1", "Again"),
        ("../secret", "", "", "", "Outside"),
        ("", "", "", "", "Nothing"),
    ]  # fmt: skip
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("videoid", "contentUrl", "duration", "page_dir", "name"), *rows])
    sources = found(tmp_path / "list.csv", IngestConfig(root=tmp_path / "videos"))
    assert len(sources) == len(rows)
    assert sources["11"].path == tmp_path / "videos/p1/11.mp4"
    assert sources["11"].caption == 'Bird, flying "high"'
    assert sources["22"].caption == "Sea\nat night"
    assert sources["33"].error == "row 3: no such file"
    assert "repeats the identifier '11'" in str(sources["11 (repeat 4)"].error)
    assert "lies outside" in str(sources["../secret"].error)
    assert "no path and no id" in str(sources["row-00000006"].error)


def test_malformed_rows_cost_only_themselves(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{name}.mp4" for name in "abcdefgh"))
    (tmp_path / "list.csv").write_bytes(
        b"Path,Caption\r\n"
        b"a.mp4,first\r\n"
        b"b.mp4,too,many,fields\r\n"
        b"onlyone\r\n"
        b"\r\n"
        b'c.mp4,"never closed\r\n'
        b"d.mp4,swallowed?\r\n"
        b"e.mp4,caf\xe9\r\n"
        b"f\x00.mp4,nul\r\n"
        b'g.mp4,"two\r\nlines"\r\n' + b"n" * 5000 + b".mp4,long\r\n"
        b"../list.csv,outside\r\n"
        b"/etc/hostname,absolute\r\n"
        b'h.mp4,"open to the end\r\n'
    )
    sources = list(IngestConfig().sources(tmp_path / "list.csv"))
    usable = {source.source_id: source.caption for source in sources if source.error is None}
    assert usable == {
        "a.mp4": "first",
        "c.mp4": "never closed",
        "d.mp4": "swallowed?",
        "g.mp4": "two\r\nlines",
        "h.mp4": "open to the end",
    }
    errors = [source.error for source in sources if source.error is not None]
    assert len(sources) == 12
    for part in (
        "got 4 fields, expected 2",
        "got 1 fields",
        "not UTF-8",
        "usable path",
        "5004 characters",
        "lies outside",
    ):
        assert any(part in str(error) for error in errors), (part, errors)


def test_a_field_beyond_all_limits(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    text = "path,caption\na.mp4,x\nc.mp4," + "y" * 3_000_000 + "\nb.mp4,z\n"
    (tmp_path / "list.csv").write_text(text)
    sources = found(tmp_path / "list.csv")
    assert sources["a.mp4"].error is None
    assert sources["b.mp4"].caption == "z"
    assert any("field larger than field limit" in str(source.error) for source in sources.values())


def test_json_lines_and_tabs(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    lines = [
        json.dumps({"video": "a.mp4", "text": "one", "id": 7}),
        "{broken",
        "[1, 2]",
        json.dumps({"video": "b.mp4", "caption": ["no"]}),
        '{"video": "a.mp4", "caption": "half \\ud800"}',
        json.dumps({"caption": "no file"}),
        "[" * 100_000,
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    sources = list(IngestConfig().sources(tmp_path / "list.jsonl"))
    assert sources[0] == Source(source_id="7", path=tmp_path / "a.mp4", caption="one")
    errors = [str(source.error) for source in sources[1:]]
    parts = (
        "not JSON",
        "got list, expected an object",
        "got list where text",
        "not UTF-8",
        "no path and no id",
        "not JSON",
    )
    assert len(errors) == len(parts)
    for part, error in zip(parts, errors, strict=True):
        assert part in error
    (tmp_path / "list.tsv").write_text("file\tcaption\nb.mp4\tsea, at night\n")
    assert found(tmp_path / "list.tsv")["b.mp4"].caption == "sea, at night"


def test_parquet(tmp_path: Path) -> None:
    touch(tmp_path / "p/1.mp4", tmp_path / "2.mp4")
    table = pa.table(
        {"videoid": [1, 2, 3], "page_dir": ["p", None, "q"], "name": ["one", None, "three"], "x": [0.0] * 3}
    )
    pq.write_table(table, tmp_path / "list.parquet")
    sources = found(tmp_path / "list.parquet")
    assert [source.path for source in sources.values()] == [tmp_path / "p/1.mp4", tmp_path / "2.mp4", None]
    assert [source.caption for source in sources.values()] == ["one", None, None]
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "list.parquet").read_bytes()[:-20])
    with pytest.raises(IngestError, match="not readable as Parquet"):
        list(IngestConfig().sources(tmp_path / "cut.parquet"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none", None, "no such file or folder"),
        ("a.zip", b"x", "got suffix '.zip', expected a folder or .csv"),
        ("a.csv", b"", r"got columns \(none\), expected one of path"),
        ("b.csv", b"title,url\n1,2\n", "got columns title, url"),
        ("c.csv", "path,caption\n".encode("utf-16"), "in a UTF-8 header"),
        ("d.csv", os.urandom(100_000), "expected one of path|the header is not CSV"),
    ],
)
def test_an_unusable_input_is_one_clear_line(
    tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(IngestError, match=message) as raised:
        list(IngestConfig().sources(tmp_path / name))
    str(raised.value).encode()


def test_long_lists_stream(tmp_path: Path) -> None:
    with (tmp_path / "list.csv").open("w") as file:
        file.write("path,caption\n")
        file.writelines(f"folder/video-{number}.mp4,{'caption ' * 20}\n" for number in range(5_000))
    config = IngestConfig()
    tracemalloc.start()
    count = sum(1 for _ in config.sources(tmp_path / "list.csv"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5_000
    # Nothing stays of a row but 8 bytes of its identifier; a Python set takes up to 170 for them.
    assert peak < 5_000 * 170 + 200_000
