"""What is published: a wheel and a source distribution that make a video where nothing else of ours is."""

from __future__ import annotations

import email
import email.message
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import hummingbird
from hummingbird.video_io import read_video

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a red circle moving right on a black background"
PACKAGES = ("hummingbird", "data_pipeline", "train")


def tracked() -> list[str]:
    """Files of the checkout that git knows or would take: what a release is built from."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@dataclass(frozen=True)
class Built:
    """The two files of a release."""

    wheel: Path
    sdist: Path

    def wheel_names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as file:
            return set(file.namelist())

    def sdist_names(self) -> set[str]:
        """Names without the folder that they all lie in."""
        with tarfile.open(self.sdist) as file:
            return {member.name.partition("/")[2] for member in file if member.isfile()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """``python -m build``: a source distribution, and a wheel made from that one."""
    folder = tmp_path_factory.mktemp("release")
    for name in tracked():
        if not name.startswith("tests/goldens/"):  # large, and not in a release
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), "."],
        cwd=folder / "source",
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return Built(wheel, sdist)


@pytest.mark.timeout(900)  # builds
def test_one_version_everywhere(built: Built) -> None:
    version = hummingbird.__version__
    assert built.wheel.name == f"hummingbird_t2v-{version}-py3-none-any.whl"
    assert built.sdist.name == f"hummingbird_t2v-{version}.tar.gz"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hummingbird.__version__"}
    assert re.search(rf"^## {re.escape(version)} \(", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_wheel_has_every_file_of_the_packages(built: Built) -> None:
    names = built.wheel_names()
    ours = {name for name in tracked() if name.split("/")[0] in PACKAGES}
    assert "hummingbird/nano/weights/nano-teacher/unet/diffusion_pytorch_model.safetensors" in ours
    assert ours - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)


def test_the_source_distribution_has_what_a_build_and_a_reader_need(built: Built) -> None:
    names = built.sdist_names()
    files = tracked()
    assert {name for name in files if name.split("/")[0] in (*PACKAGES, "configs", "docs", "docker")} <= names
    top = {"LICENSE", "README.md", "CHANGELOG.md", "app.py", "pyproject.toml", "requirements.txt", "Makefile"}
    assert top <= names
    assert not [name for name in names if name.startswith(("tests/", "outputs/")) or "__pycache__" in name]


def metadata(built: Built) -> email.message.Message:
    with zipfile.ZipFile(built.wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(file.read(name))


def test_metadata(built: Built) -> None:
    seen = metadata(built)
    assert (seen["Name"], seen["Version"]) == ("hummingbird-t2v", hummingbird.__version__)
    assert seen["License-Expression"] == "Apache-2.0"
    assert [name for name in built.wheel_names() if name.endswith(".dist-info/licenses/LICENSE")]
    needed = {
        re.split(r"[<>=;\[ ]", line)[0] for line in seen.get_all("Requires-Dist", []) if "extra" not in line
    }
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert needed == {re.split(r"[<>=]", line)[0] for line in lines if line and line[0] != "#"}
    assert not [line for line in seen.get_all("Requires-Dist", []) if "@" in line], (
        "the index refuses addresses"
    )


def test_the_index_would_take_them(built: Built) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(built.wheel), str(built.sdist)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def environment(folder: Path, packages: Path | None) -> dict[str, str]:
    """Make an empty venv; where ``packages`` is given it sees that folder's packages, as if it had them."""
    venv.create(folder)
    if packages is not None:
        (site,) = (folder / "lib").glob("python*/site-packages")
        (site / "packages.pth").write_text(f"{packages}\n")
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HUMMINGBIRD"))
    }
    return {**kept, "PATH": f"{folder / 'bin'}:/usr/bin:/bin"}


def install(folder: Path, *words: object, timeout_s: int) -> None:
    """Install into that venv, which needs no pip of its own, and nowhere else."""
    python = str(folder / "bin" / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "--require-virtualenv", "install", "--quiet"]
    subprocess.run([*command, *map(str, words)], cwd=folder, check=True, timeout=timeout_s)


def make_a_video(folder: Path, environ: dict[str, str]) -> None:
    """Run the installed command far from the checkout; it must be the installed package that answers."""
    away = folder / "away"
    away.mkdir()

    def run(*words: str) -> str:
        done = subprocess.run(
            [str(folder / "venv" / "bin" / words[0]), *words[1:]],
            cwd=away, env=environ, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    where = run("python", "-c", "import hummingbird; print(hummingbird.__file__)")
    assert where.startswith(str(folder / "venv"))
    assert run("hummingbird", "--version") == f"hummingbird {hummingbird.__version__}\n"
    assert run("hummingbird", "generate", PROMPT, "--steps", "2", "--out", "a.mp4") == "a.mp4\n"
    assert read_video(away / "a.mp4").frames.shape == (16, 64, 64, 3)


@pytest.mark.timeout(900)
def test_the_wheel_makes_a_video_in_an_empty_environment(built: Built, tmp_path: Path) -> None:
    """Empty but for the packages that it requires, which are those of this environment: no download."""
    import torch

    environ = environment(tmp_path / "venv", Path(torch.__file__).parent.parent)
    install(tmp_path / "venv", "--no-index", "--no-deps", built.wheel, timeout_s=600)
    make_a_video(tmp_path, environ)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_full_install_makes_a_video(built: Built, tmp_path: Path, kind: str) -> None:
    """From the registry, with everything that it requires: about 6 GB and some minutes."""
    environ = environment(tmp_path / "venv", None)
    install(tmp_path / "venv", getattr(built, kind), timeout_s=3000)
    make_a_video(tmp_path, environ)


def test_the_release_workflow_publishes_without_a_secret() -> None:
    path = ROOT / ".github" / "workflows" / "release.yml"
    workflow = yaml.safe_load(path.read_text())
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    assert (jobs["try"]["needs"], jobs["publish"]["needs"]) == ("build", "try")
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert not [name for name in ("build", "try") if "permissions" in jobs[name]]
    assert "secrets." not in path.read_text()
    uses = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert "pypa/gh-action-pypi-publish@release/v1" in uses
    assert all(re.search(r"@(v\d+|release/v1)$", action) for action in uses)
    commands = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    assert "python -m build" in commands
    assert "twine check --strict" in commands


@pytest.mark.parametrize(
    ("tag", "heading", "passes"),
    [
        ("v0.9.9", "## 0.9.9 (2026-12-01)", True),
        ("v0.9.8", "## 0.9.9 (2026-12-01)", False),
        ("v0.9.9", "## 0.9.9 (not released)", False),
    ],
)
def test_the_workflow_refuses_a_tag_that_is_not_the_version(
    tmp_path: Path, tag: str, heading: str, passes: bool
) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    (check,) = (
        step["run"] for step in workflow["jobs"]["build"]["steps"] if "GITHUB_REF" in step.get("run", "")
    )
    (tmp_path / "hummingbird").mkdir()
    source = (ROOT / "hummingbird" / "__init__.py").read_text()
    (tmp_path / "hummingbird" / "__init__.py").write_text(source.replace(hummingbird.__version__, "0.9.9"))
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", check], cwd=tmp_path,
                          env={**os.environ, "GITHUB_REF_NAME": tag}, check=False)  # fmt: skip
    assert (done.returncode == 0) is passes


def test_every_model_folder_of_the_packages_has_card_and_licence() -> None:
    """Wherever weights lie in the packages, now or later."""
    folders = {path for package in PACKAGES for path in (ROOT / package).rglob("weights") if path.is_dir()}
    models = set()
    for folder in folders:
        inside = [path for path in folder.iterdir() if path.is_dir()]
        models |= {folder} if (folder / "README.md").is_file() else set(inside)
    assert len(models) >= 2
    for model in models:
        card = (model / "README.md").read_text()
        data = yaml.safe_load(card.split("---\n")[1])
        assert data["license"] == "apache-2.0", model
        assert (model / "LICENSE").read_text() == (ROOT / "LICENSE").read_text(), model
