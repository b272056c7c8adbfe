"""Object storage by way of fsspec: sources are listed there and read from a cache, results are copied there.

A task that opens a source first has its object copied into a bounded folder of its node, then works on a file
as ever. The copy is written under another name and appears in one step; its size, and the object's checksum
or date, are those of the listing. A file is locked (shared) while a task reads it; the longest unused files
that nobody holds make room. Credentials are the business of the storage's own library and its environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO, TypeVar
from urllib.parse import unquote

from pydantic import Field

from data_pipeline.clip import Remote, Source
from data_pipeline.engine import EngineError, SetupError
from data_pipeline.journal import Journal, digest
from data_pipeline.stages.ingest import (
    LIST_SUFFIXES,
    MAX_SIDECAR_BYTES,
    SIDECAR_SUFFIXES,
    IngestConfig,
    IngestError,
    Listed,
    RowError,
    printable,
    read_list,
    sidecar_text,
    without_repeats,
)
from hummingbird.config import config_dataclass

__all__ = ["StorageConfig", "StorageError", "check_url", "deliver", "is_url", "remote_sources", "staged"]

T = TypeVar("T")

_PACKAGES = {
    "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub",
    "http": "aiohttp", "https": "aiohttp",
}  # fmt: skip
_VERSIONS = (
    "ETag", "etag", "generation", "md5Hash", "content_md5", "Content-MD5", "blob_id", "Digest", "mtime",
    "LastModified", "last_modified", "Last-Modified", "updated",
)  # fmt: skip
"""What tells one content of an object from the next, by the libraries' names; the first that is there."""

_TRIES, _PAUSE_S = 3, 1.0
_POLL_S = 0.2
_CHUNK_BYTES = 2**23
_BATCH = 1024
_MAX_DEPTH = 64
_NUM_LOCKS = 64
_CACHED = re.compile(r"\.?[0-9a-f]{32}(\.[A-Za-z0-9]{1,8})?(\.part)?")
"""Only files with such names are ever removed from the cache's folder."""


class StorageError(RuntimeError):
    """An object that cannot be had; the message is one line, without credentials."""


@config_dataclass
class StorageConfig:
    """How objects are reached; credentials come from the environment of each storage's library.

    Attributes:
        protocols: those that URLs may have.
        cache_dir: folder on a local disk of every node, for this purpose only; None is
            ``~/.cache/hummingbird/sources``.
        cache_max_gib: size of the files in it; a task waits until there is room for its source.
        max_file_gib: larger objects are errors of their rows.
        num_listers: requests at a time while the input is listed.
    """

    protocols: tuple[str, ...] = ("s3", "gs", "gcs", "az", "abfs", "hf", "http", "https", "file")
    cache_dir: Path | None = None
    cache_max_gib: Annotated[float, Field(gt=0)] = 50.0
    max_file_gib: Annotated[float, Field(gt=0)] = 20.0
    num_listers: Annotated[int, Field(ge=1, le=256)] = 16

    @property
    def cache(self) -> Path:
        if self.cache_dir is not None:
            return self.cache_dir.absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hummingbird" / "sources"


# --- URLs --------------------------------------------------------------------------------------------------


def is_url(place: str | Path) -> bool:
    """Whether a place is meant as a URL and not as a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.:-]+:/", str(place)) is not None


def check_url(name: str, url: str, settings: StorageConfig) -> str:
    """A URL of the settings without a slash at its end, once nothing is wrong with it.

    Args:
        name: of the setting.

    Raises:
        ValueError: it is malformed, has credentials in it, or is of a protocol that is not allowed.
        EngineError: the protocol's library is not installed.
    """
    shown = _redacted(url)
    protocol, found, rest = url.partition("://")
    if not found or not rest.strip("/") or "::" in url or not url.isprintable():
        raise ValueError(f"{name}: got {shown!r}, expected PROTOCOL://BUCKET/KEY, not chained with ::")
    if protocol not in settings.protocols:
        raise ValueError(
            f"{name}: got protocol {protocol!r}, expected one of {', '.join(settings.protocols)}; "
            "storage.protocols names those that are allowed"
        )
    if _has_credentials(url) or (protocol in ("http", "https") and re.search(r"[?#]", rest)):
        raise ValueError(
            f"{name}: got {shown!r} with a user, a password or a query; give credentials to the storage's "
            "library in its own environment"
        )
    try:
        _filesystem(url)
    except SetupError as error:
        raise EngineError(f"{name}: {error}") from error
    return url.rstrip("/")


def _has_credentials(url: str) -> bool:
    host = url.partition("://")[2].partition("/")[0]
    # abfs://CONTAINER@ACCOUNT is no credential.
    return "@" in host and (":" in host.partition("@")[0] or url.startswith("http"))


def _redacted(text: str) -> str:
    """Text in which no URL has a user, a password or a query, which may be a signature."""
    text = re.sub(r"([a-z0-9+.-]+://)[^/@\s]*@", r"\1", text, flags=re.IGNORECASE)
    return re.sub(r"([a-z0-9+.-]+://[^\s?'\"]*)\?[^\s'\")]*", r"\1", text, flags=re.IGNORECASE)


def _without_query(url: str) -> str:
    """An address without what may be a signature that ends tomorrow; elsewhere ``?`` is part of a name."""
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


def _filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the URL's name there.

    Raises:
        SetupError: its library is not installed.
    """
    import fsspec
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
        if protocol in ("http", "https"):
            importlib.import_module("aiohttp")
    except (ImportError, ValueError) as error:
        package = _PACKAGES.get(protocol)
        hint = f"pip install {package}" if package else "no installed package knows this protocol"
        raise SetupError(f"{protocol}:// cannot be used ({error}); {hint}") from error
    # A listing that is remembered would hide that an object has changed.
    fs, name = url_to_fs(url, use_listings_cache=False)
    return fs, str(name)


def _tried(what: str, function: Callable[[], T]) -> T:
    """What a function answers that asks a storage; after some tries its error.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: anything else.
    """
    for number in range(1, _TRIES + 1):
        try:
            return function()
        except (FileNotFoundError, StorageError, SetupError):
            raise
        except Exception as error:  # each library has errors of its own, not all of them OSError
            if number == _TRIES or isinstance(error, (PermissionError, NotImplementedError)):
                said = " ".join(_redacted(str(error)).split())[:300]
                raise StorageError(f"{what}: {type(error).__name__}: {said}") from error
        time.sleep(_PAUSE_S * 4 ** (number - 1))
    raise AssertionError("unreachable")


def _state(info: dict[str, Any]) -> tuple[int | None, str]:
    """Size and version of an object."""
    size = info.get("size")
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return (int(size) if size is not None else None), version


# --- listing, in the driver --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Item:
    """An object that may be a source.

    Attributes:
        name: in the file system; the name that is read may have a query that ``source_id`` lacks.
        info: what the listing said; None where nobody asked yet.
        siblings: names beside it; None where they are not known.
    """

    source_id: str
    name: str
    info: dict[str, Any] | None = None
    siblings: frozenset[str] | None = None
    caption: str | None = None
    where: str = ""


def remote_sources(place: str | Path, ingest: IngestConfig, settings: StorageConfig) -> Iterator[Source]:
    """Every source of an input that is a URL, or of a local list whose ``ingest.root`` is one.

    By the rules of ``IngestConfig.sources``, and with the same names: a bucket and its copy on a disk give
    the same rows. Rows of a list name objects below the root, by a relative path or by their whole URL.

    Raises:
        IngestError, ValueError: the input cannot be used.
        EngineError: a library is missing.
    """
    is_list = PurePosixPath(str(place)).suffix.lower() in LIST_SUFFIXES
    url = check_url("input", str(place), settings) if is_url(place) else None
    if is_list:
        root = str(ingest.root) if ingest.root is not None else str(url).rpartition("/")[0]
        root = check_url("ingest.root", root, settings)
        fs, base = _filesystem(root)
        items = _list_items(place, url, fs, root, base, settings)
    else:
        if url is None:
            raise IngestError(f"{place}: expected a list where ingest.root is a URL; give the URL as input")
        fs, base = _filesystem(url)
        items = _folder_items(fs, base.rstrip("/"), ingest)
        first = next(items, None)
        if first is None:
            raise IngestError(f"{url}: no videos there; give the URL of a folder of videos or a list of them")
        items = itertools.chain([first], items)
    yield from without_repeats(_looked_at(items, fs, ingest, settings))


def _looked_at(
    items: Iterator[_Item | Source], fs: Any, ingest: IngestConfig, settings: StorageConfig
) -> Iterator[Source]:
    """Ask for what the listing did not say, many at a time and in order."""

    def look(item: _Item | Source) -> Source:
        return item if isinstance(item, Source) else _looked(item, fs, ingest, settings)

    with ThreadPoolExecutor(settings.num_listers, thread_name_prefix="listing") as executor:
        while batch := list(itertools.islice(items, _BATCH)):
            yield from executor.map(look, batch)


def _looked(item: _Item, fs: Any, ingest: IngestConfig, settings: StorageConfig) -> Source:
    try:
        info = item.info
        if info is None or info.get("size") is None:
            info = _tried("cannot be looked at", lambda: fs.info(item.name))
        size, version = _state(info)
        largest_gib = min(settings.max_file_gib, settings.cache_max_gib)
        if info.get("type") != "file" or size is None:
            raise RowError("is not an object of known size")
        if size > largest_gib * 2**30:
            raise RowError(
                f"has {size} bytes, expected at most {largest_gib:g} GiB; storage.max_file_gib and "
                "cache_max_gib set it"
            )
        caption = item.caption
        if caption is None and ingest.sidecar_captions:
            caption = _sidecar(item, fs)
    except FileNotFoundError:
        return Source(source_id=item.source_id, path=None, error=f"{item.where}no such object")
    except (RowError, StorageError) as error:
        return Source(source_id=item.source_id, path=None, caption=item.caption, error=f"{item.where}{error}")
    remote = Remote(
        url=fs.unstrip_protocol(item.name),
        size_bytes=size,
        version=version,
        cache_max_bytes=int(settings.cache_max_gib * 2**30),
    )
    lasting = _without_query(remote.url)
    name = hashlib.sha256(f"{lasting}\n{size}\n{version}".encode()).hexdigest()[:32]
    suffix = PurePosixPath(lasting).suffix
    path = settings.cache / (name + (suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", suffix) else ""))
    return Source(source_id=item.source_id, path=path, caption=caption, remote=remote)


def _sidecar(item: _Item, fs: Any) -> str | None:
    """The caption that lies beside the video."""
    folder, _, file_name = _without_query(item.name).rpartition("/")
    stem = PurePosixPath(file_name).stem
    for suffix in SIDECAR_SUFFIXES:
        name = stem + suffix
        if item.siblings is not None and name not in item.siblings:
            continue

        def read(path: str = f"{folder}/{name}") -> bytes:
            with fs.open(path, "rb") as file:
                data: bytes = file.read(MAX_SIDECAR_BYTES + 1)
            return data

        try:
            data = _tried("cannot be read", read)
            if len(data) > MAX_SIDECAR_BYTES:
                raise RowError(f"larger than {MAX_SIDECAR_BYTES} bytes")
            caption = sidecar_text(data, suffix)
        except FileNotFoundError:
            continue
        except (RowError, StorageError) as error:
            raise RowError(f"caption {name}: {error}; mend or remove it") from error
        if caption is not None:
            return caption
    return None


def _folder_items(fs: Any, base: str, ingest: IngestConfig, inner: str = "", depth: int = 0) -> Iterator[Any]:
    """Videos below a folder in the order of their names, a level at a time; hidden ones are left out."""
    folder = f"{base}/{inner}".rstrip("/")
    try:
        if depth > _MAX_DEPTH:
            raise StorageError(f"more than {_MAX_DEPTH} folders in each other")
        infos = _tried("cannot be listed", lambda: fs.ls(f"{folder}/", detail=True))
    except (FileNotFoundError, NotADirectoryError, StorageError) as error:
        said = str(error) if isinstance(error, StorageError) else "no such folder"
        if depth == 0:
            raise IngestError(f"{_redacted(fs.unstrip_protocol(base))}: {said}") from error
        yield Source(source_id=printable(inner), path=None, error=said)
        return
    found = {}
    for info in infos:
        name = str(info["name"]).rstrip("/")
        # Pages of web servers also link to what is elsewhere, and to themselves in another order.
        inside = name[len(folder) + 1 :] if name.startswith(f"{folder}/") else ""
        if inside and not re.search(r"[/?#]", inside) and not inside.startswith("."):
            found[inside] = info
    siblings = frozenset(found)
    for name in sorted(found):
        suffix = PurePosixPath(name).suffix.lower()
        here = f"{inner}/{name}".lstrip("/")
        if found[name].get("type") == "directory":
            yield from _folder_items(fs, base, ingest, here, depth + 1)
        elif suffix in ingest.suffixes or (ingest.any_suffix and suffix not in SIDECAR_SUFFIXES):
            yield _Item(
                source_id=printable(here), name=f"{folder}/{name}", info=found[name], siblings=siblings
            )


def _list_items(
    place: str | Path, url: str | None, fs: Any, root: str, base: str, settings: StorageConfig
) -> Iterator[_Item | Source]:
    """Rows of a list, which is fetched first where it is an object itself."""
    if url is None:
        yield from (_row_item(row, root, base) for row in read_list(Path(place)))
        return
    list_fs, name = _filesystem(url)
    found = _looked(_Item(source_id=url, name=name), list_fs, IngestConfig(sidecar_captions=False), settings)
    if found.path is None:
        raise IngestError(f"{url}: {found.error}")
    try:
        with staged(found.path, found.remote):
            yield from (_row_item(row, root, base) for row in read_list(found.path))
    except (StorageError, SetupError) as error:
        raise EngineError(f"{url}: {error}") from error


def _row_item(row: Listed, root: str, base: str) -> _Item | Source:
    where = f"row {row.number}: "
    try:
        if row.error is not None or row.path is None:
            raise RowError(row.error or "names no file")
        is_web = root.startswith(("http://", "https://"))
        inside, query = row.path, ""
        if is_web:
            inside, mark, rest = row.path.partition("?")
            query = mark + rest
        if is_url(inside):
            if not inside.startswith(f"{root}/"):
                raise RowError(f"lies outside of {root}; set ingest.root to a URL that all rows are below")
            inside = inside[len(root) + 1 :]
        parts = (unquote(inside) if is_web else inside).split("/")
        if {"", ".", ".."} & set(parts) or "::" in inside or not inside.isprintable() or "#" in inside:
            raise RowError("is not a usable path below the root")
    except RowError as error:
        return Source(source_id=_without_query(row.source_id), path=None, error=f"{where}{error}")
    return _Item(
        source_id=_without_query(row.source_id),
        name=f"{base.rstrip('/')}/{inside}{query}",
        caption=row.caption,
        where=where,
    )


# --- the cache, in the workers -----------------------------------------------------------------------------


@contextmanager
def staged(path: Path, remote: Remote | None) -> Iterator[None]:
    """See to it that ``path`` is there for the length of the block.

    Args:
        path: file of the cache that stands for the object, or any file where there is no ``remote``.

    Raises:
        StorageError: the object is gone, has changed since it was listed, or cannot be read.
        SetupError: the cache cannot be written, or a library is missing on this node.
    """
    if remote is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        while (file := _held(path)) is None:
            _download(path, remote)
        stack.enter_context(file)
        yield


def _held(path: Path) -> BinaryIO | None:
    """The file, open and locked against removal; None where it is not there."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    try:
        if os.stat(path).st_ino == os.fstat(file.fileno()).st_ino:
            os.utime(path)
            return file
    except FileNotFoundError:
        pass
    file.close()  # it was removed between the two lines
    return None


def _download(path: Path, remote: Remote) -> None:
    """Copy an object into the cache, unless another task has done so in the meantime."""
    cache = path.parent
    with _disk(cache):
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = cache.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o002:
        raise SetupError(f"storage.cache_dir: {cache} belongs to others or lets all write; choose your own")
    with _locked(cache / f".lock-{int(path.name[:8], 16) % _NUM_LOCKS:02d}"):
        if path.exists():
            return
        partial = cache / f".{path.name}.part"
        with _reserved(partial, remote) as file:
            try:
                _tried("cannot be read", lambda: _fetch(remote, file))
                with _disk(cache):
                    os.fsync(file.fileno())
                    os.replace(partial, path)
            except FileNotFoundError as error:
                raise StorageError("the object is not there any more; give the command again") from error
            finally:
                partial.unlink(missing_ok=True)


def _fetch(remote: Remote, file: BinaryIO) -> None:
    fs, name = _filesystem(remote.url)
    file.seek(0)
    left = remote.size_bytes
    # Web servers need not know ranges: 0 is one request, read as it comes.
    block_size = 0 if remote.url.startswith("http") else _CHUNK_BYTES
    with fs.open(name, "rb", block_size=block_size) as reader:
        while chunk := reader.read(min(_CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                break
            with _disk(Path(str(file.name)).parent):
                file.write(chunk)
    with _disk(Path(str(file.name)).parent):
        file.flush()
    fs.invalidate_cache()
    if left != 0 or _state(fs.info(name)) != (remote.size_bytes, remote.version):
        raise StorageError("the object has changed since it was listed; give the command again")


@contextmanager
def _reserved(partial: Path, remote: Remote) -> Iterator[BinaryIO]:
    """A file of the object's size, locked; what is longest unused, and held by nobody, makes room for it."""
    file: BinaryIO | None = None
    while file is None:
        with _locked(partial.parent / ".lock"), _disk(partial.parent):
            others = [entry for entry in _entries(partial.parent) if entry[2] != partial]
            over = sum(size for _, size, _ in others) + remote.size_bytes - remote.cache_max_bytes
            for _, size, path in sorted(others):
                if over > 0 and _removed(path):
                    over -= size
            if over <= 0:
                file = partial.open("w+b")
                fcntl.flock(file, fcntl.LOCK_EX)
                file.truncate(remote.size_bytes)
        if file is None:
            time.sleep(_POLL_S)
    with file:
        yield file


def _entries(cache: Path) -> list[tuple[float, int, Path]]:
    found = []
    for path in cache.iterdir():
        if _CACHED.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # a download that ended under another name
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
    return found


def _removed(path: Path) -> bool:
    """Remove a file that nobody holds."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk(cache: Path) -> Iterator[None]:
    """A disk that is full or gone ends the run: no source is to blame."""
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"storage.cache_dir: {cache}: {error.strerror or error}; make room or choose another, then give "
            "the same command again"
        ) from error


# --- delivery, in the driver -------------------------------------------------------------------------------


def deliver(output: Path, names: Sequence[str], url: str, say: Callable[[str], None]) -> int:
    """Copy finished files to a URL, those that are not there yet; the last of them when all others are there.

    Shards that an earlier run delivered and that this run does not have are removed there. What was sent is
    noted in ``work/upload.journal``.

    Args:
        output: folder of the run.
        names: files in it, in the order to send; the last one, the manifest, is taken away while others
            that it speaks of are replaced.
        url: folder to copy them to, as ``check_url`` gave it.

    Returns:
        Number of files that were sent.

    Raises:
        EngineError: the storage refuses; what was sent stays noted.
    """
    journal = Journal(output / "work" / "upload.journal")
    try:
        fs, base = _filesystem(url)
        plan = digest("names", url)
        before: list[str] = []
        if plan in journal:
            before = journal[plan]
        due = [name for name in names if not _is_there(fs, base, output, name, journal, url)]
        stale = [name for name in before if name not in names]
        if due or stale:
            journal.add(plan, sorted({*names, *before}))
            for name in [*(names[-1:] if names[-1] in before else []), *stale]:
                _remove(fs, f"{base}/{name}")
            for name in dict.fromkeys([*due, names[-1]]):
                _send(fs, base, output, name, journal, url)
            due = list(dict.fromkeys([*due, names[-1]]))
        journal.add(plan, list(names))
        say(f"upload: {len(due)} of {len(names)} files sent to {url}, the others were there")
        return len(due)
    except (FileNotFoundError, StorageError, SetupError) as error:
        raise EngineError(
            f"upload: {url}: {_redacted(str(error))}; the results in {output} are complete, and the same "
            "command sends what is missing"
        ) from error
    finally:
        journal.close()


def _is_there(fs: Any, base: str, output: Path, name: str, journal: Journal, url: str) -> bool:
    """Whether the object is the one that was sent, and the file still has the content that was sent."""
    key = digest("file", url, name)
    if key not in journal:
        return False
    try:
        state = _state(_tried(name, lambda: fs.info(f"{base}/{name}")))
    except FileNotFoundError:
        return False
    sent, now = journal[key], (output / name).stat()
    if list(state) != sent["state"] or now.st_size != sent["state"][0]:
        return False
    return sent["mtime_ns"] == now.st_mtime_ns or sent["sha256"] == _sha256(output / name)


def _send(fs: Any, base: str, output: Path, name: str, journal: Journal, url: str) -> None:
    path, target = output / name, f"{base}/{name}"
    size, mtime_ns, sha256 = path.stat().st_size, path.stat().st_mtime_ns, _sha256(path)
    # A bucket shows an object when it is complete; on a disk it needs another name until then.
    on_disk = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
    folder, _, file_name = target.rpartition("/")
    first = f"{folder}/.{file_name}.part" if on_disk else target

    def put() -> tuple[int | None, str]:
        if on_disk:
            os.makedirs(folder, exist_ok=True)
        fs.put_file(str(path), first)
        if on_disk:
            os.replace(first, target)
        fs.invalidate_cache()
        return _state(fs.info(target))

    state = _tried(name, put)
    if state[0] != size:
        raise StorageError(f"{name}: {state[0]} bytes arrived, expected {size}")
    journal.add(digest("file", url, name), {"state": state, "mtime_ns": mtime_ns, "sha256": sha256})


def _remove(fs: Any, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        _tried(target, lambda: fs.rm_file(target))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finished_files(output: Path, shards: Iterable[str]) -> list[str]:
    """What a run leaves for others, the manifest last."""
    more = [name for name in ("thresholds.json", "report.html") if (output / name).is_file()]
    return [*shards, *more, "manifest.parquet"]
