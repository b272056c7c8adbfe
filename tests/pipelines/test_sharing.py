"""Saved folders: the model card, the loader for diffusers alone, and uploads."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hummingbird import HummingbirdPipeline, nano
from hummingbird.pipelines import sharing
from tests.pipelines.tiny import CALL, tiny_pipeline

DEFAULTS = {name: value for name, value in CALL.items() if name != "output_type"}


def test_model_card(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    tiny_pipeline(default_call=DEFAULTS).save_pretrained(folder)
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-video")
    assert card.data.license == "unknown"  # whose it is only the user knows
    assert not (folder / "LICENSE").exists()
    assert "a few-step model" in card.text
    assert "2 steps, 3\nframes of 16x24, 8 frames per second" in card.text
    parameters = sum(parameter.numel() for parameter in tiny_pipeline().unet.parameters())
    assert f"| `unet` | UNetSpatioTemporalModel | {parameters:,} |" in card.text
    blocks = card.text.split("```python\n")[1:]
    for block in blocks:
        ast.parse(block.split("```")[0])
    assert len(blocks) == 2
    assert "a many-step model" in tiny_pipeline(few_step=False).model_card("x")


def test_the_licence_goes_with_the_weights(tmp_path: Path) -> None:
    """The packaged model has a card and the text; what is saved or pruned from it has both, too."""
    packaged = nano.resolve("nano")
    assert packaged is not None
    assert ModelCard.load(packaged / "README.md").data.license == "apache-2.0"
    text = (packaged / "LICENSE").read_text()
    assert text == (Path(__file__).parents[2] / "LICENSE").read_text()
    assert "Apache License" in text
    first, second = tmp_path / "first", tmp_path / "second"
    tiny_pipeline(default_call=DEFAULTS).save_pretrained(first)
    (first / "README.md").write_text("---\nlicense: gpl-3.0\n---\n")
    (first / "LICENSE").write_text("mine")
    pipe = HummingbirdPipeline.from_pretrained(first)
    pipe.save_pretrained(second)
    assert ModelCard.load(second / "README.md").data.license == "gpl-3.0"
    assert "Licence: `gpl-3.0`" in (second / "README.md").read_text()
    assert (second / "LICENSE").read_text() == "mine"


@pytest.mark.parametrize(
    "card",
    [
        None,
        "no metadata",
        "---\nlicense: [mit, apache-2.0]\n---\n",
        "---\nlicense: {a: *nothing}\n---\n",
        "---\nlicense: |\n  mit\n  ---\n  # hi\n---\n",
        "---\nlicense: !!python/object/apply:os.system [exit 1]\n---\n",
        "---\n- a list\n---\n",
        "---\nlicense: mit\n---\n" + "x" * 1_000_001,
    ],
)
def test_a_hostile_card_names_no_licence(tmp_path: Path, card: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert sharing.licence_of(tmp_path) == "unknown"


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    for name in ("README.md", "pipeline.py"):
        (tmp_path / name).write_text("mine")
    tiny_pipeline().save_pretrained(tmp_path)
    for name in ("README.md", "pipeline.py"):
        assert (tmp_path / name).read_text() == "mine"


_LOAD = """
import sys
from diffusers import DiffusionPipeline
folder = sys.argv[1]
assert "hummingbird" not in sys.modules
try:
    DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline")
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    sys.exit("the folder's code ran without permission")
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
assert type(pipe).__name__ == "HummingbirdPipeline"
sys.exit(len(pipe("a red circle").frames[0]))
"""


def test_diffusers_alone_loads_the_folder(tmp_path: Path) -> None:
    """In a process that never names this package, and only where the user trusts the folder's code."""
    folder = tmp_path / "model"
    tiny_pipeline(default_call=DEFAULTS).save_pretrained(folder)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == DEFAULTS["num_frames"], done.stderr


class Hub:
    """Stands at the network's edge: what would be uploaded, and whether a card is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, has_card: bool) -> None:
        self.has_card = has_card
        self.uploads: list[dict[str, Any]] = []
        monkeypatch.setattr(sharing, "create_repo", lambda name, **_: SimpleNamespace(repo_id=f"me/{name}"))
        monkeypatch.setattr(sharing, "file_exists", lambda _repo, _name, token=None: self.has_card)
        monkeypatch.setattr("diffusers.utils.hub_utils.upload_folder", self.upload)

    def upload(self, folder_path: Path, **options: Any) -> str:
        files = {path.name: path for path in Path(folder_path).iterdir()}
        card = files["README.md"].read_text() if "README.md" in files else None
        self.uploads.append({"files": set(files), "card": card, **options})
        return "done"


@pytest.mark.parametrize("has_card", [True, False])
def test_upload(monkeypatch: pytest.MonkeyPatch, has_card: bool) -> None:
    hub = Hub(monkeypatch, has_card)
    assert tiny_pipeline().push_to_hub("tiny", commit_message="First", variant="fp16") == "done"
    (upload,) = hub.uploads
    assert upload["repo_id"] == "me/tiny"
    assert upload["commit_message"] == "First"
    assert {"model_index.json", "pipeline.py", "unet", "vae", "text_encoder", "tokenizer"} <= upload["files"]
    if has_card:
        assert upload["card"] is None
    else:
        assert 'from_pretrained("me/tiny"' in upload["card"]


def test_upload_of_a_saved_folder_keeps_its_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = Hub(monkeypatch, has_card=True)
    (tmp_path / "README.md").write_text("mine")
    tiny_pipeline().save_pretrained(tmp_path, push_to_hub=True, repo_id="tiny")
    assert hub.uploads[0]["card"] == "mine"
    assert HummingbirdPipeline.from_pretrained(tmp_path).unet is not None
