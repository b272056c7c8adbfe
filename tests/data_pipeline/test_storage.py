"""Sources from a web server on this machine, results to other file systems: the bytes of a local run."""

from __future__ import annotations

import functools
import http.server
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from data_pipeline.clip import Remote, Source
from data_pipeline.engine import EngineError, SetupError
from data_pipeline.pipeline import PipelineConfig, Summary, run
from data_pipeline.stages.ingest import IngestConfig, IngestError
from data_pipeline.storage import StorageConfig, StorageError, check_url, deliver, remote_sources, staged
from hummingbird.config import load_config
from hummingbird.manifest import ClipRecord, read_manifest
from tests.data_pipeline.conftest import ROOT, TINY_CONFIG, results

MIB = 2**20


class Server(http.server.ThreadingHTTPServer):
    """A web server with the pages of folders; remembers what was asked for, and can answer otherwise.

    Attributes:
        gets: paths of GET requests.
        refused: paths that get status 503.
        changed: other bytes than those that were announced, by path.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.gets: list[str] = []
        self.refused: set[str] = set()
        self.changed: dict[str, bytes] = {}
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                server.gets.append(self.path)
                if self.path in server.refused:
                    self.send_error(503)
                elif self.path in server.changed:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(server.changed[self.path])))
                    self.end_headers()
                    self.wfile.write(server.changed[self.path])
                else:
                    super().do_GET()

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server(tiny_input: Path, tmp_path: Path) -> Iterator[Server]:
    """Serves ``bucket/videos``, a copy of ``tiny_input``."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed (extra `storage`)")
    shutil.copytree(tiny_input, tmp_path / "bucket" / "videos")
    serving = Server(tmp_path / "bucket")
    thread = threading.Thread(target=serving.serve_forever, args=(0.02,))
    thread.start()
    yield serving
    serving.shutdown()
    thread.join()
    serving.server_close()


def config(source: str | Path, output: Path, *flags: str) -> PipelineConfig:
    words = ["--input", str(source), "--output", str(output)]
    words += ["--storage.cache-dir", str(output.parent / "cache"), *flags]
    return load_config(PipelineConfig, TINY_CONFIG, words)


def rows(summary: Summary) -> dict[str, ClipRecord]:
    return {record.source: record for record in read_manifest(summary.output / "manifest.parquet")}


@pytest.fixture(scope="module")
def local(tiny_input: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a run on the files themselves."""
    output = tmp_path_factory.mktemp("local") / "out"
    run(config(tiny_input, output))
    return output


def cached(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if not path.name.startswith(".lock"))


def listed(place: str | Path, cache: Path, ingest: IngestConfig | None = None) -> list[Source]:
    settings = StorageConfig(cache_dir=cache, protocols=("memory", "http"))
    return list(remote_sources(place, ingest or IngestConfig(), settings))


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


# --- whole runs --------------------------------------------------------------------------------------------


def test_a_bucket_gives_the_bytes_of_its_copy_on_a_disk(server: Server, local: Path, tmp_path: Path) -> None:
    summary = run(config(f"{server.url}/videos", tmp_path / "remote"))
    assert results(tmp_path / "remote") == results(local)
    assert rows(summary)["broken.mp4"].reason == "shots: unreadable"
    videos = [path for path in server.gets if path.endswith(".mp4")]
    assert len(videos) == len(set(videos)) == 8  # each object was copied once, for all of its tasks
    assert len(cached(tmp_path / "cache")) == 8
    # The same command finds everything done, and reads no object again.
    server.gets.clear()
    run(config(f"{server.url}/videos/", tmp_path / "remote"))
    assert not [path for path in server.gets if path.endswith(".mp4")]
    assert results(tmp_path / "remote") == results(local)


def test_a_list_of_urls_has_a_row_for_every_row(server: Server, tmp_path: Path) -> None:
    files = [
        "pan0.mp4",
        "videos/pan1.mp4",
        "pan2.mp4?Signature=secret",
        "gone.mp4",
        "../x.mp4",
        "%2e%2e/x.mp4",
    ]
    lines = [f"{server.url}/videos/{files[0]}", files[1], f"{server.url}/videos/{files[2]}"]
    lines += [f"{server.url}/videos/{name}" for name in files[3:]]
    lines += ["http://169.254.169.254/latest.mp4", "s3://other/x.mp4", "/etc/passwd"]
    path = tmp_path / "bucket" / "list.csv"
    path.write_text("path\n" + "\n".join(lines) + "\n")
    summary = run(config(f"{server.url}/list.csv", tmp_path / "out"))
    found = rows(summary)
    assert len(found) == len(lines)
    assert {name for name, row in found.items() if row.status == "kept"} == {
        f"{server.url}/videos/pan0.mp4",
        "videos/pan1.mp4",
        f"{server.url}/videos/pan2.mp4",
    }
    assert found["videos/pan1.mp4"].caption == "a pan over texture 1"
    assert found[f"{server.url}/videos/gone.mp4"].detail == "row 4: no such object"
    assert "not a usable path" in found[f"{server.url}/videos/../x.mp4"].detail
    assert "not a usable path" in found[f"{server.url}/videos/%2e%2e/x.mp4"].detail
    for outside in lines[6:8]:
        assert found[outside].detail.startswith(f"row {lines.index(outside) + 1}: lies outside of")
    assert "not a usable path" in found["/etc/passwd"].detail
    written = [file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not any(b"secret" in data for data in written)
    # The same list on a disk names its objects by ingest.root.
    copy = Path(shutil.copy(path, tmp_path / "list.csv"))
    here = listed(copy, tmp_path / "cache", IngestConfig(root=server.url))
    assert here == listed(f"{server.url}/list.csv", tmp_path / "cache")
    assert sum(source.error is None for source in here) == 3


def test_an_object_that_cannot_be_read_is_an_error_row_until_it_can(server: Server, tmp_path: Path) -> None:
    """Its server refuses; its content is longer, or shorter, than when it was listed."""
    server.refused = {"/videos/pan0.mp4"}
    size = (tmp_path / "bucket/videos/pan1.mp4").stat().st_size
    server.changed = {"/videos/pan1.mp4": bytes(size + 1), "/videos/pan2.mp4": bytes(10)}
    summary = run(config(f"{server.url}/videos", tmp_path / "out"))
    found = rows(summary)
    assert len(found) == 8
    for name in ("pan0.mp4", "pan1.mp4", "pan2.mp4"):
        assert (found[name].status, found[name].reason) == ("error", "shots: unavailable")
    assert "has changed since it was listed" in found["pan1.mp4"].detail
    assert found["pan3.mp4"].status == "kept"
    server.refused.clear()
    server.changed.clear()
    summary = run(config(f"{server.url}/videos", tmp_path / "out", "--retry-failed", "True"))
    assert {row.reason for row in rows(summary).values() if row.status == "error"} == {"shots: unreadable"}


@pytest.mark.slow
def test_ray_gives_the_same_bytes(server: Server, local: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="Ray is not installed (extra `ray`)")
    run(config(f"{server.url}/videos", tmp_path / "remote", "--engine", "ray"))
    assert results(tmp_path / "remote") == results(local)


def test_a_cache_smaller_than_the_input_ends_in_the_same_bytes(
    server: Server, tiny_input: Path, local: Path, tmp_path: Path
) -> None:
    largest = max(path.stat().st_size for path in tiny_input.rglob("*.mp4"))
    flags = ["--storage.cache-max-gib", str(1.2 * largest / 2**30)]  # one of the larger files at a time
    run(config(f"{server.url}/videos", tmp_path / "remote", *flags))
    assert results(tmp_path / "remote") == results(local)
    assert sum(path.stat().st_size for path in cached(tmp_path / "cache")) <= 1.2 * largest


# --- listing -----------------------------------------------------------------------------------------------


def test_a_folder_is_listed_as_on_a_disk(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    names = ["b.mp4", "a/z.mp4", "a.mp4", "a/.hidden/x.mp4", ".x.mp4", "note.md", "c.MKV", "d/e/f.webm"]
    for name in names:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).write_bytes(b"1234")
        memory.pipe_file(f"/bucket/videos/{name}", b"1234")
    for name, text in {"a.txt": "a caption", "b.json": '{"text": "of b"}', "c.txt": "\n"}.items():
        (tmp_path / "videos" / name).write_text(text)
        memory.pipe_file(f"/bucket/videos/{name}", text.encode())
    found = listed("memory://bucket/videos", tmp_path / "cache")
    expected = list(IngestConfig().sources(tmp_path / "videos"))
    assert [(s.source_id, s.caption, s.error) for s in found] == [
        (s.source_id, s.caption, s.error) for s in expected
    ]
    assert found[0].remote is not None
    assert (found[0].remote.url, found[0].remote.size_bytes) == ("memory:///bucket/videos/a/z.mp4", 4)
    with pytest.raises(IngestError, match="no such folder"):
        listed("memory://bucket/nothing", tmp_path / "cache")


def test_an_object_that_is_too_large_is_an_error_of_its_row(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    memory.pipe_file("/bucket/a.mp4", bytes(2048))
    settings = StorageConfig(cache_dir=tmp_path, protocols=("memory",), max_file_gib=1024 / 2**30)
    (source,) = remote_sources("memory://bucket", IngestConfig(), settings)
    assert source.path is None
    assert source.error is not None
    assert source.error.startswith("has 2048 bytes, expected at most")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3:/bucket", "expected PROTOCOL://BUCKET/KEY"),
        ("simplecache::s3://bucket", "expected PROTOCOL://BUCKET/KEY"),
        ("https://", "expected PROTOCOL://BUCKET/KEY"),
        ("ftp://host/videos", "got protocol 'ftp', expected one of s3, gs"),
        ("s3://key:secret@bucket/videos", "with a user, a password or a query"),
        ("https://secret@host/videos", "with a user, a password or a query"),
        ("https://host/videos?sig=secret", "with a user, a password or a query"),
    ],
)
def test_urls_that_are_refused(url: str, message: str, tmp_path: Path) -> None:
    for flags in (["--input", url], ["--upload", url]):
        if flags[0] == "--upload" and url.startswith("http"):
            continue
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            run(config(tmp_path / "x", tmp_path / "out", *flags))
        assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(EngineError, match=r"input: s3:// cannot be used .*pip install s3fs"):
            check_url("input", "s3://bucket/videos", StorageConfig())
    else:
        assert check_url("input", "s3://bucket/videos/", StorageConfig()) == "s3://bucket/videos"


# --- the cache ---------------------------------------------------------------------------------------------


def objects(fs: fsspec.AbstractFileSystem, cache: Path, count: int, limit: int) -> list[Source]:
    """So many objects of a MiB each, for a cache of ``limit`` MiB."""
    for number in range(count):
        fs.pipe_file(f"/bucket/{number}.mp4", bytes([number]) * MIB)
    sources = listed("memory://bucket", cache)
    remotes = [source.remote for source in sources if source.remote is not None]
    return [
        replace(source, remote=replace(remote, cache_max_bytes=limit * MIB))
        for source, remote in zip(sources, remotes, strict=True)
    ]


def test_the_longest_unused_goes_and_nothing_that_is_read(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    first, second, third = objects(memory, tmp_path / "cache", 3, limit=2)
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / "of somebody else.mp4").write_bytes(bytes(5 * MIB))
    assert first.path
    assert second.path
    assert third.path
    place = second.path
    with staged(first.path, first.remote):
        with staged(second.path, second.remote):
            pass
        with staged(third.path, third.remote):  # the first is older, and in use
            assert first.path.read_bytes() == bytes(MIB)
            assert third.path.read_bytes() == b"\2" * MIB
            assert not second.path.exists()
            thread = threading.Thread(target=lambda: staged(place, second.remote).__enter__())
            thread.start()
            thread.join(0.5)
            assert thread.is_alive()  # waits until one of the two is given back
    thread.join(10)
    assert second.path.exists()
    assert not first.path.exists()
    assert (tmp_path / "cache" / "of somebody else.mp4").exists()


def test_what_a_killed_download_left_is_no_obstacle(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    first, second = objects(memory, tmp_path / "cache", 2, limit=1)
    assert first.path
    assert second.path
    (tmp_path / "cache").mkdir(mode=0o700)
    for source in (first, second):
        assert source.path is not None
        (tmp_path / "cache" / f".{source.path.name}.part").write_bytes(b"half")
    with staged(second.path, second.remote):
        assert second.path.read_bytes() == b"\1" * MIB
    assert cached(tmp_path / "cache") == [second.path]


def test_an_object_that_changed_or_went_is_never_half_there(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    first, second = objects(memory, tmp_path / "cache", 2, limit=9)
    assert first.path
    assert second.path
    memory.pipe_file("/bucket/0.mp4", bytes(MIB - 1))
    memory.rm_file("/bucket/1.mp4")
    with (
        pytest.raises(StorageError, match="has changed since it was listed"),
        staged(first.path, first.remote),
    ):
        pass
    with pytest.raises(StorageError, match="not there any more"), staged(second.path, second.remote):
        pass
    assert not cached(tmp_path / "cache")


def test_a_cache_that_others_can_write_to_is_refused(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    (source,) = objects(memory, tmp_path / "cache", 1, limit=9)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    assert source.path
    with pytest.raises(SetupError, match="lets all write"), staged(source.path, source.remote):
        pass


def test_a_full_disk_names_the_cache(tmp_path: Path) -> None:
    remote = Remote(url="memory://bucket/0.mp4", size_bytes=1, version="", cache_max_bytes=9)
    with pytest.raises(SetupError, match=r"storage.cache_dir: /proc/nowhere"):
        staged(Path("/proc/nowhere") / ("0" * 32), remote).__enter__()


# --- delivery ----------------------------------------------------------------------------------------------


def results_of(output: Path, **shards: bytes) -> list[str]:
    (output / "shards").mkdir(parents=True, exist_ok=True)
    for name, data in shards.items():
        (output / "shards" / f"{name}.tar").write_bytes(data)
    (output / "manifest.parquet").write_bytes(repr(shards).encode())
    return [*(f"shards/{name}.tar" for name in shards), "manifest.parquet"]


def test_delivery_sends_what_is_missing_and_the_manifest_last(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    url = "memory://bucket/set"
    names = results_of(tmp_path, a=b"1", b=b"2", c=b"3")
    put_file, sent = type(memory).put_file, []

    def failing(self: object, local: str, remote: str, **more: object) -> None:
        if remote.endswith("c.tar") and not said:
            raise PermissionError("denied by key:secret at https://key:secret@host/c.tar?sig=secret")
        sent.append(remote.rpartition("/")[2])
        put_file(self, local, remote, **more)

    monkeypatch.setattr(type(memory), "put_file", failing)
    with pytest.raises(
        EngineError, match=r"upload: memory://bucket/set: shards/c.tar: PermissionError"
    ) as caught:
        deliver(tmp_path, names, url, said.append)
    assert "https://host/c.tar" in str(caught.value)
    assert not memory.exists("/bucket/set/manifest.parquet")
    said.append("mended")
    assert deliver(tmp_path, names, url, said.append) == 2
    assert sent == ["a.tar", "b.tar", "c.tar", "manifest.parquet"]
    assert {name: memory.cat_file(f"/bucket/set/{name}") for name in names} == {
        name: (tmp_path / name).read_bytes() for name in names
    }
    # Again: nothing to do, also where a file was only written anew.
    os.utime(tmp_path / "manifest.parquet", (1, 1))
    assert deliver(tmp_path, names, url, said.append) == 0
    # A changed shard, one that is gone, and one that somebody took away there; not ours to remove: extra.tar.
    memory.pipe_file("/bucket/set/shards/extra.tar", b"x")
    memory.rm_file("/bucket/set/shards/a.tar")
    names = results_of(tmp_path, a=b"1", b=b"4")
    assert deliver(tmp_path, names, url, said.append) == 3
    assert sorted(path.rpartition("/")[2] for path in memory.ls("/bucket/set/shards", detail=False)) == [
        "a.tar",
        "b.tar",
        "extra.tar",
    ]
    assert memory.cat_file("/bucket/set/shards/b.tar") == b"4"


def test_a_run_uploads_its_results_to_a_disk(tiny_input: Path, local: Path, tmp_path: Path) -> None:
    shutil.copytree(local, tmp_path / "out")
    there = tmp_path / "there"
    settings = config(tiny_input, tmp_path / "out", "--upload", f"file://{there}")
    run(settings)
    assert results(there) == results(tmp_path / "out")
    inodes = {path: path.stat().st_ino for path in there.rglob("*") if path.is_file()}
    run(settings)
    assert {path: path.stat().st_ino for path in there.rglob("*") if path.is_file()} == inodes
    # A folder that cannot be made: one line, and what was made here stands.
    (tmp_path / "file").write_text("")
    with pytest.raises(
        EngineError, match=r"upload: .*; the results in .* are complete, and the same command"
    ):
        run(config(tiny_input, tmp_path / "out", "--upload", f"file://{tmp_path}/file/x"))
    assert results(there) == results(tmp_path / "out")


def test_a_download_that_is_killed_frees_its_place(tmp_path: Path, server: Server) -> None:
    """A worker that is killed while it holds a file and the locks of the cache stands in nobody's way."""
    source = next(s for s in listed(f"{server.url}/videos", tmp_path / "cache") if s.source_id == "pan0.mp4")
    assert source.path
    assert source.remote
    code = (
        "import sys, time, pickle; from data_pipeline.storage import staged\n"
        "path, remote = pickle.load(sys.stdin.buffer)\n"
        "with staged(path, remote): print('held', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(pickle.dumps((source.path, source.remote)))
    process.stdin.close()
    assert process.stdout.readline() == b"held\n"
    other = next(s for s in listed(f"{server.url}/videos", tmp_path / "cache") if s.source_id == "pan1.mp4")
    assert other.path
    assert other.remote
    remote = replace(other.remote, cache_max_bytes=other.remote.size_bytes)
    place = other.path
    thread = threading.Thread(target=lambda: staged(place, remote).__enter__())
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive()
    process.kill()
    process.wait()
    process.stdout.close()
    thread.join(10)
    assert cached(tmp_path / "cache") == [other.path]
