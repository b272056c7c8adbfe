"""The whole run on tiny videos: every clip has its row, and every way of stopping ends in the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.clip import Clip, Drop, Keep, View
from data_pipeline.engine import EngineError
from data_pipeline.journal import Journal
from data_pipeline.pipeline import PipelineConfig, Stage, Summary, run
from hummingbird.config import config_dataclass, load_config
from hummingbird.manifest import ClipRecord, read_manifest
from hummingbird.video_io import read_video, write_video
from tests.data_pipeline.conftest import pan, results

Configure = Callable[..., PipelineConfig]
JOURNALS = ("split", "score", "write", "shards")


def rows(output: Path) -> dict[str, ClipRecord]:
    return {record.source: record for record in read_manifest(output / "manifest.parquet")}


def finished(config: PipelineConfig) -> tuple[Summary, Path]:
    summary = run(config)
    assert config.output is not None
    return summary, config.output


@pytest.fixture(scope="module")
def unbroken(tiny_input: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a run that nothing disturbed, with its clips; tests work on copies of it."""
    from tests.data_pipeline.conftest import TINY_CONFIG

    output = tmp_path_factory.mktemp("unbroken") / "out"
    flags = ["--input", str(tiny_input), "--output", str(output), "--keep-clips", "True"]
    run(load_config(PipelineConfig, TINY_CONFIG, flags))
    return output


def test_every_source_has_its_row(unbroken: Path) -> None:
    found = rows(unbroken)
    assert len(found) == 8
    pans = [record for name, record in found.items() if name.startswith("pan")]
    assert {record.status for record in pans} == {"kept"}
    assert found["pan3.mp4"].caption == "a pan over texture 3"
    assert found["pan3.mp4"].num_frames == 21
    assert found["pan3.mp4"].scores["motion_mean"] > 0.3
    assert (found["sub/still.mp4"].status, found["sub/still.mp4"].shard) == ("dropped", None)
    broken = found["broken.mp4"]
    assert (broken.status, broken.reason) == ("error", "shots: unreadable")
    assert broken.detail.startswith("broken.mp4: ")
    assert broken.start_s is None


def test_shards_hold_what_the_manifest_says(unbroken: Path) -> None:
    kept = [record for record in rows(unbroken).values() if record.status == "kept"]
    assert sorted({str(record.shard) for record in kept}) == [f"shards/00000{n}.tar" for n in range(3)]
    for record in kept:
        with tarfile.open(unbroken / str(record.shard)) as tar:
            files = {
                name: tar.extractfile(f"{record.clip_id}.{name}").read() for name in ("mp4", "json", "txt")
            }  # type: ignore[union-attr]
        assert hashlib.sha256(files["mp4"]).hexdigest() == record.sha256
        assert files["txt"].decode() == record.caption
        metadata = json.loads(files["json"])
        assert metadata["source"] == record.source
        assert metadata["scores"] == dict(record.scores)
        (unbroken.parent / "clip.mp4").write_bytes(files["mp4"])
        frames = read_video(unbroken.parent / "clip.mp4").frames
        assert frames.shape == (metadata["num_frames"], 48, 64, 3)


def test_the_same_command_again_does_nothing_and_changes_nothing(
    unbroken: Path, tiny_config: Configure, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(unbroken, output)
    started = time.monotonic()
    run(tiny_config())
    assert time.monotonic() - started < 2, "no task, so no worker"
    assert results(output) == results(unbroken)
    assert not (output / "work" / "clips").exists()
    run(tiny_config())
    assert results(output) == results(unbroken), "finished shards need no clips"


def test_one_worker_or_three_give_the_same_bytes(unbroken: Path, tiny_config: Configure) -> None:
    _, output = finished(tiny_config("--workers", "3"))
    assert results(output) == results(unbroken)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.6, 0.9])
def test_a_run_goes_on_from_any_prefix_of_its_journals(
    share: float, unbroken: Path, tiny_config: Configure, tmp_path: Path
) -> None:
    """What a crash leaves: whole journals of the phases before, a torn one, nothing of those after."""
    output = tmp_path / "out"
    shutil.copytree(unbroken / "work", output / "work")
    journals = [output / "work" / f"{name}.journal" for name in JOURNALS]
    left = int(share * sum(path.stat().st_size for path in journals))
    for path in journals:
        size = path.stat().st_size
        os.truncate(path, min(size, left))
        left = max(0, left - size)
    (output / "work" / "clips" / "00").mkdir(parents=True, exist_ok=True)
    (output / "work" / "clips" / "00" / ".half.x.part.mp4").write_bytes(b"half")
    said: list[str] = []
    run(tiny_config(output=output), said.append)
    assert results(output) == results(unbroken)
    assert all("are done again" in line for line in said)


def test_a_damaged_journal_is_cut_where_the_damage_begins(unbroken: Path, tmp_path: Path) -> None:
    path = tmp_path / "score.journal"
    content = bytearray((unbroken / "work" / "score.journal").read_bytes())
    whole = Journal(unbroken / "work" / "score.journal")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    cut = Journal(path)
    assert 0 < len(cut) < len(whole)
    assert 0 < cut.cut_bytes < len(content)
    cut.add("k" * 16, {"x": 1})
    again = Journal(path)
    assert again.cut_bytes == 0
    assert again["k" * 16] == {"x": 1}
    assert len(again) == len(cut)


def test_changed_settings_do_again_what_depends_on_them(
    unbroken: Path, tiny_config: Configure, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(unbroken, output)
    sizes = {name: (output / "work" / f"{name}.journal").stat().st_size for name in JOURNALS}

    def grown() -> set[str]:
        now = {name: (output / "work" / f"{name}.journal").stat().st_size for name in JOURNALS}
        names = {name for name in JOURNALS if now[name] > sizes[name]}
        sizes.update(now)
        return names

    run(tiny_config("--write.clips-per-shard", "100", output=output))
    assert grown() == {"shards"}
    assert [path.name for path in sorted((output / "shards").iterdir())] == ["000000.tar"]
    run(tiny_config("--write.crf", "30", output=output))
    assert grown() == {"write", "shards"}
    run(tiny_config("--motion.min-mean", "0.2", output=output))
    assert "score" in grown()
    run(tiny_config(output=output))
    assert "score" not in grown(), "results of earlier settings are still there"
    assert results(output) == results(unbroken)


def test_an_input_that_changes_is_looked_at_again(
    tiny_input: Path, tiny_config: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "input"
    shutil.copytree(tiny_input, folder)
    _, output = finished(tiny_config("--input", str(folder)))
    write_video(pan(0), folder / "broken.mp4", fps=12)
    (folder / "pan5.mp4").unlink()
    write_video(pan(50), folder / "new.mp4", fps=12)
    run(tiny_config("--input", str(folder)))
    found = rows(output)
    assert found["broken.mp4"].reason != "shots: unreadable"
    assert found["new.mp4"].status == "kept"
    assert "pan5.mp4" not in found
    fresh = tmp_path / "fresh"
    run(tiny_config("--input", str(folder), output=fresh))
    assert results(fresh) == results(output)


def test_a_lost_shard_or_clip_is_made_again(unbroken: Path, tiny_config: Configure, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(unbroken, output)
    shutil.rmtree(output / "work" / "clips")
    (output / "shards" / "000001.tar").unlink()
    os.truncate(output / "shards" / "000002.tar", 100)
    run(tiny_config(output=output))
    assert results(output) == results(unbroken)


@config_dataclass
class TroubleConfig:
    """A stage that does to its process what the clip's caption says."""

    folder: Path

    @property
    def name(self) -> str:
        return "trouble"

    @property
    def views(self) -> tuple[View, ...]:
        return ()

    def setup(self) -> None:
        if (self.folder / "no setup").exists():
            raise FileNotFoundError("no checkpoint weights.pt; download it")

    def process(self, clip: Clip) -> Keep | Drop:
        with (self.folder / clip.spec.clip_id).open("a") as file:
            file.write("try\n")
        trouble = clip.spec.caption or ""
        if trouble == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if trouble == "leave":
            os._exit(3)
        if trouble == "hang":
            time.sleep(600)
        if trouble == "bug":
            raise KeyError("missing")
        if trouble == "nan":
            return Keep(scores={"trouble": float("nan")})
        return Keep(scores={"trouble": 1.0})


@config_dataclass
class TroubledConfig(PipelineConfig):
    """A pipeline with that stage alone."""

    folder: Path

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (TroubleConfig(folder=self.folder),)


@pytest.fixture
def troubled(tmp_path: Path) -> Callable[..., TroubledConfig]:
    from tests.data_pipeline.conftest import TINY_CONFIG

    for kind in ("segfault", "leave", "hang", "bug", "nan", "fine"):
        write_video(pan(1), tmp_path / "input" / f"{kind}.mp4", fps=12)
        (tmp_path / "input" / f"{kind}.txt").write_text(kind)
    (tmp_path / "tries").mkdir()
    places = [
        f"--{name}={tmp_path / path}"
        for name, path in (("input", "input"), ("output", "out"), ("folder", "tries"))
    ]

    def make(*flags: str) -> TroubledConfig:
        settings = tmp_path / "settings.yaml"
        settings.write_text(TINY_CONFIG.read_text() + f"folder: {tmp_path / 'tries'}\n")
        return load_config(TroubledConfig, settings, [*places, *flags])

    return make


def tries(folder: Path) -> dict[str, int]:
    files = (folder / "tries").iterdir()
    return {path.name.split("-")[0]: len(path.read_text().splitlines()) for path in files}


def test_a_clip_that_kills_its_worker_is_put_aside_after_two_tries(
    troubled: Callable[..., TroubledConfig], tmp_path: Path
) -> None:
    summary, output = finished(troubled("--clip-timeout-s", "4"))
    found = {name.removesuffix(".mp4"): record for name, record in rows(output).items()}
    reasons = {name: record.reason for name, record in found.items() if record.status == "error"}
    assert reasons == {
        "segfault": "score: worker died (SIGSEGV)",
        "leave": "score: worker died (status 3)",
        "hang": "score: timeout",
        "bug": "trouble: KeyError",
        "nan": "trouble: ValueError",
    }
    assert found["nan"].detail == "score trouble is nan, expected a finite number"
    assert found["hang"].detail == "took over 4 s"
    assert found["fine"].status == "kept"
    assert tries(tmp_path) == {"segfault": 2, "leave": 2, "hang": 1, "bug": 1, "nan": 1, "fine": 1}
    assert summary.reasons["error", "score: timeout"] == 1

    before = results(output)
    run(troubled("--clip-timeout-s", "4"))
    assert tries(tmp_path)["segfault"] == 2, "what failed is not tried again by itself"
    assert results(output) == before
    run(troubled("--clip-timeout-s", "4", "--retry-failed", "True"))
    assert tries(tmp_path) == {"segfault": 4, "leave": 4, "hang": 2, "bug": 2, "nan": 2, "fine": 1}


def test_a_stage_that_cannot_be_set_up_ends_the_run(
    troubled: Callable[..., TroubledConfig], tmp_path: Path
) -> None:
    (tmp_path / "tries" / "no setup").touch()
    with pytest.raises(EngineError, match=r"^trouble: no checkpoint weights.pt; download it$"):
        run(troubled())


def test_a_full_disk_stops_the_run_and_not_the_clips(
    unbroken: Path, tiny_config: Configure, tmp_path: Path
) -> None:
    """A limit on the size of files stands in for a full disk: the system refuses writes in the same way."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    output = tmp_path / "out"
    for limit in (900, 4000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(
                EngineError, match=r"out: File too large; make room, then give the same command"
            ):
                run(tiny_config())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run(tiny_config())
    assert results(output) == results(unbroken)


def test_a_second_run_on_the_same_output_is_refused(tiny_config: Configure) -> None:
    import fcntl

    config = tiny_config()
    assert config.output is not None
    lock = config.output / "work" / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        file.write("123\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(EngineError, match=r"another run works there \(process 123\); wait for it"):
            run(config)
    assert not (config.output / "manifest.parquet").exists()


def test_an_output_in_the_input_is_refused(tiny_input: Path, tiny_config: Configure) -> None:
    with pytest.raises(ValueError, match="lies in the input"):
        run(tiny_config(output=tiny_input / "out"))
    assert not (tiny_input / "out").exists()


def test_an_input_that_is_not_there_leaves_no_output(tiny_config: Configure, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match="no such file or folder"):
        run(tiny_config("--input", str(tmp_path / "nowhere")))
    assert not (tmp_path / "out").exists()


def test_a_file_that_may_not_be_read_is_an_error_and_is_looked_at_again(
    tiny_input: Path, tiny_config: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    for name in ("pan0.mp4", "pan1.mp4"):
        shutil.copy(tiny_input / name, folder)
    (folder / "pan1.mp4").chmod(0)
    if os.access(folder / "pan1.mp4", os.R_OK):
        pytest.skip("this user may read everything")
    _, output = finished(tiny_config("--input", str(folder)))
    assert rows(output)["pan1.mp4"].reason == "ingest: no usable file"
    (folder / "pan1.mp4").chmod(0o644)
    run(tiny_config("--input", str(folder)))
    assert rows(output)["pan1.mp4"].status == "kept"


def test_an_empty_input_gives_an_empty_manifest(tiny_config: Configure, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    summary, output = finished(tiny_config("--input", str(tmp_path / "empty")))
    assert summary.num_rows == 0
    assert rows(output) == {}
