"""Written clips: the right frames at an exact rate, the right part of the picture, the same bytes."""

from __future__ import annotations

import hashlib
import json
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.clip import ClipSpec, Crop
from data_pipeline.stages import write
from data_pipeline.stages.write import Sample, WriteConfig, encode_clip, write_shard
from hummingbird.video_io import VideoError, iter_frames, read_clip_frames, read_video, write_clip
from tests.data_pipeline.test_reader import number_of, numbered
from tests.data_pipeline.test_reader import write as write_source

SMALL = WriteConfig(width=96, height=64, fps=25.0)


def spec_of(path: Path, start_s: float = 0.0, end_s: float = 4.0) -> ClipSpec:
    frames = iter_frames(path, start_s=start_s, end_s=end_s)
    count = sum(1 for _ in frames)
    return ClipSpec(
        clip_id="a-0", source_id="a", path=path, start_s=start_s, end_s=end_s, num_frames=count,
        fps=count / (end_s - start_s), width=frames.info.width, height=frames.info.height,
    )  # fmt: skip


def numbers(path: Path) -> list[int]:
    return [number_of(image) for image in read_video(path).frames]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 numbered frames at 25 frames per second, with open groups."""
    options = {"g": "12", "preset": "veryfast", "bf": "3", "x264-params": "open-gop=1:threads=1"}
    return write_source(tmp_path_factory.mktemp("source") / "a.mp4", options=options)


@pytest.mark.parametrize("fps", [25.0, 8.0, 24.0, 23.976, 30.0, 50.0, 12.5])
def test_the_frame_on_the_screen_at_each_moment(tmp_path: Path, source: Path, fps: float) -> None:
    settings = WriteConfig(width=96, height=64, fps=fps)
    clip = encode_clip(spec_of(source, 0.4, 3.6), None, settings, tmp_path / "a.mp4")
    count = int(3.2 * fps + 1e-6)
    assert clip.num_frames == count
    assert numbers(clip.path) == [10 + int(index * 25 / fps + 1e-6) for index in range(count)]
    with av.open(str(clip.path)) as container:
        stream = container.streams.video[0]
        times = [frame.pts * stream.time_base for frame in container.decode(stream)]
        assert stream.average_rate == Fraction(fps).limit_denominator(100_000)
    assert times == [index / Fraction(fps).limit_denominator(100_000) for index in range(count)]


def test_a_variable_rate_becomes_constant_without_drift(tmp_path: Path) -> None:
    steps = np.random.default_rng(3).integers(1, 6, 60)
    pts = [0, *np.cumsum(steps).tolist()[:-1]]
    path = write_source(tmp_path / "a.mp4", num_frames=60, fps=50, pts=pts)
    clip = encode_clip(
        spec_of(path, 0.0, pts[-1] / 50), None, WriteConfig(width=96, height=64, fps=30), tmp_path / "b.mp4"
    )
    shown = [
        int(np.searchsorted(pts, index * 50 / 30 + 1e-6, "right")) - 1 for index in range(clip.num_frames)
    ]
    assert numbers(clip.path) == shown


def test_groups_are_closed_and_bytes_are_the_same(tmp_path: Path, source: Path) -> None:
    first = encode_clip(spec_of(source), None, SMALL, tmp_path / "a.mp4")
    second = encode_clip(spec_of(source), None, SMALL, tmp_path / "folder" / "b.mp4")
    data = first.path.read_bytes()
    assert data == second.path.read_bytes()
    assert (first.sha256, first.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert b"Lavf" not in data
    with av.open(str(first.path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [index for index, packet in enumerate(packets) if packet.is_keyframe] == list(
            range(0, 100, 16)
        )
        # Closed: nothing that is decoded after a key frame is shown before it.
        for index in range(0, 100, 16):
            assert min(packet.pts for packet in packets[index:]) == packets[index].pts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "folder"]


def test_fast_reading_gives_the_same_frames_in_any_order(tmp_path: Path, source: Path) -> None:
    clip = encode_clip(spec_of(source), None, SMALL, tmp_path / "a.mp4")
    order = np.random.default_rng(0).permutation(100).tolist()
    assert [number_of(image) for image in read_clip_frames(clip.path, [*order, 5, 5])] == [*order, 5, 5]
    slow = read_video(clip.path).frames[order].astype(int)
    assert np.abs(read_clip_frames(clip.path, order) - slow).mean() < 2
    with pytest.raises(VideoError, match="got frames 3 to 100, expected 0 to 99"):
        read_clip_frames(clip.path, [3, 100])
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match="cannot be decoded"):
        read_clip_frames(tmp_path / "b.mp4", [0])


def test_pictures_cover_the_size_and_are_cut_at_the_centre(tmp_path: Path) -> None:
    # A grey field of 160x64 with a white square of 64x64 in its middle, and the same with a frame around it.
    wide = np.full((64, 160, 3), 60, np.uint8)
    wide[:, 48:112] = 230
    path = write_source(tmp_path / "wide.mkv", "ffv1", images=[wide] * 5, pix_fmt="yuv444p")
    square = WriteConfig(width=64, height=64, fps=25)
    image = read_video(encode_clip(spec_of(path, 0, 0.2), None, square, tmp_path / "a.mp4").path).frames[2]
    assert image.shape == (64, 64, 3)
    assert image.min() > 200
    left = Crop(left=0, top=0, width=64, height=64)
    image = read_video(encode_clip(spec_of(path, 0, 0.2), left, square, tmp_path / "b.mp4").path).frames[2]
    assert image[:, :44].max() < 90
    assert image[:, 52:].min() > 200
    tall = WriteConfig(width=32, height=128, fps=25)  # twice as large, then a quarter of the width
    image = read_video(encode_clip(spec_of(path, 0, 0.2), None, tall, tmp_path / "c.mp4").path).frames[2]
    assert image.shape == (128, 32, 3)
    assert image.min() > 200


def test_a_source_that_changed_is_refused_and_leaves_nothing(tmp_path: Path, source: Path) -> None:
    spec = spec_of(source)
    changed = write_source(tmp_path / "short.mp4", num_frames=90)
    values = {**spec.__dict__, "path": changed}
    (tmp_path / "out").mkdir()
    with pytest.raises(VideoError, match=r"got 90 frames from 0.000 to 4.000 s, expected the 100"):
        encode_clip(ClipSpec(**values), None, SMALL, tmp_path / "out" / "a.mp4")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_that_decodes_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    count = write_clip((numbered(index, 96, 64) for index in range(20)), path, 25.0, crf=18)
    write._verify(path, count, SMALL)
    for wrong_count, wrong, message in (
        (21, SMALL, "got frames 0 to 20, expected 0 to 19"),
        (19, SMALL, "frame 19 of 19"),
        (20, WriteConfig(width=96, height=64, fps=24), "frame 1 of 20 is at 0.04"),
        (20, WriteConfig(width=64, height=64, fps=25), "expected 64x64"),
    ):
        with pytest.raises(VideoError, match=message):
            write._verify(path, wrong_count, wrong)
    # A decoder that is one frame late.
    monkeypatch.setattr(
        write,
        "read_clip_frames",
        lambda path, indices: read_clip_frames(path, [max(0, index - 1) for index in indices]),
    )
    with pytest.raises(VideoError, match="PyAV and decord"):
        write._verify(path, count, SMALL)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "got no frames"),
        ([numbered(0, 95, 64)], "expected even sides"),
        ([numbered(0, 96, 64), numbered(1, 64, 64)], "after"),
        ([numbered(0, 96, 64).astype(float)], "expected uint8"),
    ],
)
def test_wrong_frames_are_refused(tmp_path: Path, images: list[np.ndarray], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        write_clip(images, tmp_path / "a.mp4", 25.0, crf=18)
    assert not list(tmp_path.iterdir())


def test_real_clips_survive_re_encoding(tmp_path: Path, clips_dir: Path) -> None:
    path = clips_dir / "highway_drive.mp4"
    settings = WriteConfig(width=128, height=80, fps=25)
    clip = encode_clip(spec_of(path, 2.0, 4.0), None, settings, tmp_path / "a.mp4")
    assert clip.num_frames == 50
    for index, frame in enumerate(iter_frames(path, start_s=2.0, end_s=4.0)):
        if index % 10 == 0:
            wanted = frame.rgb(size=(142, 80))[:, 7:135].astype(int)
            errors = np.abs(read_clip_frames(clip.path, range(50)) - wanted).mean((1, 2, 3))
            assert errors.argmin() == index
            assert errors.min() < 4


def samples(folder: Path, names: list[str]) -> list[Sample]:
    made = []
    for name in names:
        path = folder / f"{name}.video"
        path.write_bytes(name.encode() * 700)
        made.append(
            Sample(
                clip_id=name, video=path, caption=f"ein Vögelchen {name}", metadata={"z": 1.5, "a": [name]}
            )
        )
    return made


def test_shards_read_back_and_are_the_same_in_any_order(tmp_path: Path) -> None:
    names = ["b-1", "a_2", "C3", "x" * 200]
    made = samples(tmp_path, names)
    assert write_shard(made, tmp_path / "1" / "000000.tar") == 4
    write_shard(reversed(made), tmp_path / "2.tar")
    assert (tmp_path / "1" / "000000.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    wanted = {}
    for name in sorted(names):
        wanted[f"{name}.json"] = json.dumps({"a": [name], "z": 1.5}).encode()
        wanted[f"{name}.mp4"] = name.encode() * 700
        wanted[f"{name}.txt"] = f"ein Vögelchen {name}".encode()
    # Once at will, once as a stream that cannot go back, as training reads it.
    for mode in ("r:", "r|"):
        with tarfile.open(tmp_path / "2.tar", mode) as tar:
            found = {}
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (
                    0,
                    0,
                    0,
                    "",
                    0o644,
                )
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
        assert list(found.items()) == list(wanted.items())


def test_shards_refuse_what_readers_would_mix_up(tmp_path: Path) -> None:
    (one,) = samples(tmp_path, ["a"])
    for wrong in ("a.b", "a/b", "", "ä", "x" * 201):
        with pytest.raises(ValueError, match="expected up to 200 letters"):
            write_shard([Sample(clip_id=wrong, video=one.video, caption="", metadata={})], tmp_path / "a.tar")
    with pytest.raises(ValueError, match="twice"):
        write_shard([one, one], tmp_path / "a.tar")
    nan = Sample(clip_id="a", video=one.video, caption="", metadata={"score": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        write_shard([nan], tmp_path / "a.tar")
    with pytest.raises(FileNotFoundError):
        write_shard(
            [Sample(clip_id="a", video=tmp_path / "gone", caption="", metadata={})], tmp_path / "a.tar"
        )
    assert not (tmp_path / "a.tar").exists()
