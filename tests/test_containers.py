"""The images: linted, alike, and the CPU one's steps run as a script, where no container engine does."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("cpu", "cuda", "rocm")
PAGE_PORT = 7860


@dataclass(frozen=True, kw_only=True)
class Step:
    """One instruction of a Dockerfile: continuation lines joined, comments dropped."""

    stage: str
    keyword: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments, of the JSON form or separated by spaces; flags are left out."""
        text = re.sub(r"^(--\S+\s+)+", "", self.text)
        return [str(word) for word in json.loads(text)] if text.startswith("[") else text.split()


def parse(path: Path) -> list[Step]:
    lines = [
        line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    steps, stage = [], ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        keyword, text = line.split(maxsplit=1)
        if keyword == "FROM":
            stage = text.split()[-1]
        steps.append(Step(stage=stage, keyword=keyword, text=text))
    return steps


def dockerfile(kind: str) -> Path:
    return ROOT / "docker" / f"Dockerfile.{kind}"


def only(steps: list[Step], keyword: str, stage: str = "run") -> list[Step]:
    return [step for step in steps if (step.keyword, step.stage) == (keyword, stage)]


# --- what is written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_hadolint_finds_nothing(kind: str) -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if linter is None:
        pytest.skip("no hadolint here: pip install -e '.[dev]'")
    done = subprocess.run(
        [linter, "--format", "json", "--failure-threshold", "style", str(dockerfile(kind))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert json.loads(done.stdout) == []
    assert done.returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_pinned_small_and_without_root(kind: str) -> None:
    steps = parse(dockerfile(kind))
    bases = [step.text.split()[0] for step in steps if step.keyword == "FROM"]
    assert len(bases) == 2
    assert all(re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", base) for base in bases), bases
    assert [step.text for step in only(steps, "USER")] == ["1000:1000"]
    assert steps.index(only(steps, "USER")[0]) < steps.index(only(steps, "CMD")[0])
    assert "/cache" in only(steps, "VOLUME")[0].words
    assert len(only(steps, "HEALTHCHECK")) == 1
    assert not [step for step in steps if step.keyword == "ADD"]
    environment = "\n".join(step.text for step in only(steps, "ENV"))
    assert "HF_HOME=/cache/" in environment
    assert ("MIOPEN_USER_DB_PATH=/cache/" in environment) == (kind == "rocm")
    assert not re.search(r"(?i)(token|password|secret|api_?key)", dockerfile(kind).read_text())


def test_images_differ_only_in_torch_and_environment() -> None:
    def common(kind: str) -> list[Step]:
        leave_out = re.compile(r"torch|requirements-rocm|TORCH|image.title|^PATH=.*HF_HOME")
        return [step for step in parse(dockerfile(kind)) if not leave_out.search(step.text)]

    assert common("cpu") == common("cuda") == common("rocm")
    assert len(common("cpu")) > 15


@pytest.mark.parametrize("kind", KINDS)
def test_what_images_copy_exists_and_reaches_the_builder(kind: str) -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    for step in parse(dockerfile(kind)):
        if step.keyword == "COPY" and not step.text.startswith("--from"):
            for name in step.words[:-1]:
                assert (ROOT / name).exists(), name
                assert name in let_in, f"{name} is not let in by .dockerignore"


def test_compose_serves_the_demo_to_this_machine_only() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert set(compose["services"]) == set(KINDS)
    for kind, service in compose["services"].items():
        assert (ROOT / service["build"]["dockerfile"]) == dockerfile(kind)
        assert service["ports"] == [f"127.0.0.1:{PAGE_PORT}:{PAGE_PORT}"]
        assert service["volumes"] == ["cache:/cache"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert service.get("profiles", []) == ([] if kind == "cpu" else [kind])
    assert compose["services"]["rocm"]["devices"] == ["/dev/kfd", "/dev/dri"]
    assert "cache" in compose["volumes"]


# --- the CPU image's steps, as a script ---------------------------------------------------------------------

_PLACES = ("/opt/hummingbird", "/src", "/app", "/cache", "/outputs")
"""Absolute paths of the images; here they lie in a folder."""


@dataclass
class Image:
    """What an engine would keep: a file tree and an environment. Root's work (users, groups) is left out."""

    root: Path
    arguments: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    left_out: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def here(self, text: str) -> str:
        """Turn the image's absolute paths into ours."""
        pattern = "|".join(rf"(?<![\w./-]){place}(?![\w-])" for place in _PLACES)
        return re.sub(pattern, lambda match: f"{self.root}{match[0]}", text)

    def run(self, words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=self.place(self.folder), env=self.environment, text=True,
                              capture_output=True, check=False, timeout=1800, **options)  # type: ignore[call-overload]  # fmt: skip

    def place(self, path: str) -> Path:
        return Path(self.here(path)) if path.startswith("/") else self.root.joinpath(self.folder[1:], path)


def build(path: Path, root: Path, arguments: dict[str, str], after_venv: str | None) -> Image:
    """Go through a Dockerfile step by step; ``after_venv`` is a folder of packages that the new venv sees."""
    host = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    host |= {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))
    }
    # These steps run on somebody's machine: pip may change the image's venv and nothing else.
    host["PIP_REQUIRE_VIRTUALENV"] = "1"
    image = Image(root=root, arguments=dict(arguments))
    for step in parse(path):
        if step.keyword == "FROM":
            if root.exists():
                root.rename(root.with_name("finished"))
            (root / "tmp").mkdir(parents=True)
            search = f"{_only_python(root)}:/usr/bin:/bin"
            for place in ("/app", "/cache", "/outputs"):
                (root / place[1:]).mkdir()
            image.environment = {**host, "PATH": search, "TMPDIR": str(root / "tmp")}
            image.environment |= {name: value for name, value in arguments.items()}
            image.folder = "/"
        elif step.keyword == "ARG":
            name, _, default = step.text.partition("=")
            image.environment.setdefault(name, default)
        elif step.keyword == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", step.text):
                image.environment[name] = image.here(value.replace("$PATH", image.environment["PATH"]))
        elif step.keyword == "WORKDIR":
            image.folder = step.text
            image.place(step.text).mkdir(parents=True, exist_ok=True)
        elif step.keyword == "COPY":
            *sources, to = step.words
            for source in sources:
                came = (
                    root.with_name("finished") / source[1:] if "--from=build" in step.text else ROOT / source
                )
                target = image.place(to) / came.name if to == "./" else image.place(to)
                target.parent.mkdir(parents=True, exist_ok=True)
                skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(came, target, symlinks=True, ignore=None if "--from" in step.text else skip) \
                    if came.is_dir() else shutil.copy(came, target)  # fmt: skip
        elif step.keyword == "RUN":
            if step.text.startswith("groupadd"):
                image.left_out.append(step.text)
                continue
            done = image.run(["/bin/sh", "-euc", image.here(step.text)])
            assert done.returncode == 0, f"{step.text}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
            if after_venv is not None and "-m venv" in step.text:
                (site,) = (root / "opt" / "hummingbird" / "lib").glob("python*/site-packages")
                (site / "packages.pth").write_text(after_venv + "\n")
                # Python 3.11 puts an old one into every venv; the image's Python has none.
                python = str(root / "opt" / "hummingbird" / "bin" / "python")
                image.run([python, "-m", "pip", "uninstall", "--yes", "setuptools"])
        elif step.keyword == "CMD":
            image.command = [image.here(word) for word in step.words]
        elif step.keyword == "HEALTHCHECK":
            image.health = Step(stage="", keyword="CMD", text=step.text.partition("CMD ")[2]).words
        else:
            assert step.keyword in ("LABEL", "VOLUME", "USER", "EXPOSE"), f"not known here: {step.keyword}"
    return image


def _only_python(root: Path) -> Path:
    """Make a folder whose ``python`` is this one's base, with nothing of it beside: above all not its pip."""
    folder = root / "host"
    folder.mkdir()
    python = folder / "python"
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    python.write_text(f'#!/bin/sh\nexec "{base}" "$@"\n')
    python.chmod(0o755)
    return folder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def started(image: Image, port: int) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Start the image's command, on another port; ended on leaving."""
    words = [
        word.replace(str(PAGE_PORT), str(port)).replace("0.0.0.0", "127.0.0.1") for word in image.command
    ]
    log = image.root / "log"
    with log.open("w") as file, subprocess.Popen(
        words, cwd=image.place(image.folder), env=image.environment, text=True, stdout=file, stderr=file
    ) as process:  # fmt: skip
        try:
            yield process, log
        finally:
            process.terminate()
            process.wait(timeout=60)


def check_the_image(image: Image, gpu_is_missed: bool) -> None:
    """It is complete by itself, says what it lacks, serves the page, and knows whether it does.

    Args:
        image: built.
        gpu_is_missed: whether its torch was built for a GPU and finds none.
    """
    assert len(image.left_out) == 1
    assert not (image.root / "src").exists(), "sources of the build stage are not in the image"
    where = image.run(["python", "-c", "import hummingbird; print(hummingbird.__file__)"])
    assert where.stdout.startswith(str(image.root / "opt" / "hummingbird")), where.stdout + where.stderr
    port = free_port()
    health = [word.replace(str(PAGE_PORT), str(port)) for word in image.health]
    assert image.run(health).returncode != 0, "healthy, though nothing is started"
    with started(image, port) as (process, log):
        for _ in range(150):
            assert process.poll() is None, log.read_text()
            if image.run(health).returncode == 0:
                break
            time.sleep(2)
        assert image.run(health).returncode == 0, log.read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=30) as answer:
            assert json.load(answer)["title"] == "Hummingbird"
        lines = [line for line in log.read_text().splitlines() if "no GPU" in line]
        assert len(lines) == gpu_is_missed, log.read_text()


@pytest.mark.timeout(900)
def test_the_cpu_image_works_with_the_packages_that_are_here(tmp_path: Path) -> None:
    """Every step as written; only its packages are those of this environment, seen through a .pth file: pip
    finds each requirement satisfied and downloads nothing."""
    import torch

    packages = Path(torch.__file__).parent.parent
    image = build(
        dockerfile("cpu"),
        tmp_path / "image",
        {"TORCH_INDEX_URL": "", "PIP_NO_INDEX": "1", "PIP_NO_COMPILE": "1"},
        str(packages),
    )
    gpu_build = bool(torch.version.cuda or torch.version.hip)
    check_the_image(image, gpu_build and not torch.cuda.is_available())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_cpu_image_from_nothing(tmp_path: Path) -> None:
    """The same with a full install from the registry (about 6 GB; PyTorch's CPU index is not asked)."""
    image = build(dockerfile("cpu"), tmp_path / "image", {"TORCH_INDEX_URL": ""}, None)
    ask = "import torch; print(bool(torch.version.cuda or torch.version.hip), torch.cuda.is_available())"
    check_the_image(image, image.run(["python", "-c", ask]).stdout == "True False\n")
    done = image.run(
        ["hummingbird", "generate", "a red circle moving right on a black background", "--steps", "4"]
    )
    assert done.returncode == 0, done.stderr
    assert (image.root / "outputs" / "outputs" / "video.mp4").is_file()


@pytest.mark.parametrize("tool", ["pip", "python -m pip"])
def test_the_script_runner_never_reaches_the_python_of_this_machine(tmp_path: Path, tool: str) -> None:
    """Before an image has a venv of its own, pip must do nothing at all: it would change this machine."""
    hostile = tmp_path / "Dockerfile"
    hostile.write_text(f"FROM python:3.12.12-slim AS build\nRUN {tool} uninstall --yes no-such-package\n")
    with pytest.raises(AssertionError, match=r"not found|virtualenv"):
        build(hostile, tmp_path / "image", {}, None)


def test_the_script_runner_fails_where_a_step_fails(tmp_path: Path) -> None:
    broken = tmp_path / "Dockerfile"
    broken.write_text("FROM python:3.12.12-slim AS build\nRUN echo one \\\n    && false\n")
    with pytest.raises(AssertionError, match="echo one && false"):
        build(broken, tmp_path / "image", {}, None)
    assert [step.text for step in parse(broken)] == ["python:3.12.12-slim AS build", "echo one && false"]
