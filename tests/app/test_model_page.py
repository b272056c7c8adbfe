"""A model's card is shown as text, with its own pictures alone."""

from __future__ import annotations

from pathlib import Path

from hummingbird.app.model_page import card_of, memory_of_process


def test_the_embedded_card_comes_with_its_samples() -> None:
    card = card_of("nano")
    assert card.startswith("\n## nano\n")
    assert "It cannot orbit" in card
    assert "![Samples](data:image/png;base64,iVBOR" in card


def test_a_hostile_card_shows_and_fetches_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"key")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    (folder / "README.md").write_text(
        "---\nlicense: x\n---\n# A\n<script>alert(1)</script> <img src=http://elsewhere/a.png>\n"
        "![up](../secret.png) ![link](link.png) ![far](https://elsewhere/b.png) ![abs](/etc/passwd.png)\n"
    )
    card = card_of(str(folder))
    assert "license" not in card
    assert "<" not in card
    assert "](" not in card
    assert "elsewhere/b.png" not in card
    assert [f"*(picture: {name})*" in card for name in ("up", "link", "far", "abs")] == [True] * 4


def test_no_card_is_said() -> None:
    assert "has no card" in card_of("some/hub-id")
    assert memory_of_process() > 10_000_000
