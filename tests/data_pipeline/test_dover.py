"""DOVER: names and shapes of published checkpoints, recorded reference values, odd clips, hostile files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.dover.convnext import ConvNeXt3D
from data_pipeline.dover.model import CONFIGS, Dover, DoverError, DoverName, fuse, load_dover
from data_pipeline.dover.sampling import (
    FragmentGrid,
    FrameSampler,
    Squash,
    View,
    draw_frames,
    sample_views,
    standard_views,
)
from data_pipeline.dover.swin import SwinTransformer3D

ROOT = Path(__file__).resolve().parents[2]
COPIES = ROOT / "tests" / "goldens" / "rewards"
SHARED = ROOT.parent / "shared" / "reference" / "rewards" / "visible"
TINY: dict[str, Any] = {
    "technical_backbone": {
        "embed_dim": 12,
        "depths": (2, 2),
        "num_heads": (1, 2),
        "frag_biases": (True, False),
    },
    "aesthetic_backbone": {"dims": (8, 12, 16, 24), "depths": (1, 2, 1, 1)},
    "head": {"in_channels": 24, "hidden_channels": 8},
}


def tiny(seed: int = 0) -> Dover:
    torch.manual_seed(seed)
    model = Dover(**TINY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def golden(name: str) -> Path:
    for folder in (SHARED / name, COPIES / name):
        if (folder / "config.json").is_file():
            return folder
    pytest.skip(f"{name} is neither in tests/goldens nor in ../shared")


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("dover_technical", 7),
        ("dover_aesthetic", 5),
        ("dover_mobile_branch", 5),
        ("dover_sampling", 70),
        ("dover_full", 10),
        ("dover_fusion", 4),
    ],
)
def test_recorded_values(name: str, least: int) -> None:
    from benchmarks.dover_goldens import GOLDEN_TESTS

    rows = list(GOLDEN_TESTS[name](golden(name)))
    assert len(rows) >= least
    assert not [row for row in rows if not row.passes]


@pytest.mark.parametrize(("name", "file"), [("dover", "dover"), ("dover-mobile", "dover_mobile")])
def test_names_and_shapes_are_those_of_published_checkpoints(name: DoverName, file: str) -> None:
    published = json.loads((COPIES / "keys" / f"{file}.json").read_text())
    own = Dover(**CONFIGS[name]).state_dict()
    assert own.keys() == published.keys()
    for key, entry in published.items():
        assert (list(own[key].shape), str(own[key].dtype)) == (entry["shape"], f"torch.{entry['dtype']}"), key


def formula(shape: torch.Size, place: int) -> torch.Tensor:
    """Numbers in -1 to 1 that look random and are the same everywhere."""
    wave = np.sin(np.arange(shape.numel()) * 12.9898 + place * 0.37) * 43758.5453
    return torch.from_numpy(((wave - np.floor(wave)) * 2 - 1).astype(np.float32)).reshape(shape)


@pytest.mark.golden
def test_swin_on_odd_sizes() -> None:
    """Recorded when ``dover_technical`` was equal to the reference, whose own values are too large to be kept
    here: padding, shifts, shrunken windows, merging of odd sizes."""
    model = SwinTransformer3D(
        embed_dim=12, depths=(2, 2, 1), num_heads=(1, 2, 2), frag_biases=(True, True, False)
    )
    state = model.state_dict()
    for place, (name, tensor) in enumerate(state.items()):
        if tensor.is_floating_point():
            scale = (
                1.0 if "bias_table" in name else (0.3 if tensor.ndim < 2 else (2 / tensor.shape[1]) ** 0.5)
            )
            state[name] = scale * formula(tensor.shape, place) + (
                name.endswith(("norm.weight", "norm1.weight"))
            )
    model.load_state_dict(state)
    recorded = load_file(COPIES / "dover_swin_formula.safetensors")
    for name, size in {"padded": (19, 66, 90), "shrunken": (32, 28, 44), "picture": (1, 70, 38)}.items():
        with torch.inference_mode():
            found = model.eval()(formula(torch.Size((1, 3, *size)), 1000))
        assert found.std() > 0.3
        torch.testing.assert_close(found, recorded[name], atol=1e-5, rtol=0)


def test_shifted_windows_do_not_see_across_the_border() -> None:
    """What the cyclic shift brings together from opposite ends of a clip does not mix."""
    torch.manual_seed(0)
    model = SwinTransformer3D(embed_dim=8, depths=(2,), num_heads=(2,), frag_biases=(True,)).eval()
    video = torch.randn(1, 3, 64, 56, 56)
    changed = video.clone()
    changed[:, :, -2:] += 1.0  # the last of 32 frames of tokens
    with torch.inference_mode():
        difference = (model(video) - model(changed)).abs().amax(dim=(0, 1, 3, 4))
    assert difference[:20].max() < 1e-6
    assert difference[24:].min() > 1e-4


def test_frames_of_short_clips() -> None:
    rng = np.random.default_rng(0)
    sampler = standard_views()["aesthetic"].frames
    assert set(sampler.indices(26, rng, compatible=True).tolist()) == {0}
    spread = sampler.indices(26, rng)
    assert len(spread) == 32
    assert set(spread.tolist()) == set(range(26))
    assert (np.diff(spread) >= 0).all()
    for count in (32, 63, 240):
        same = [sampler.indices(count, np.random.default_rng(1), compatible=kept) for kept in (False, True)]
        np.testing.assert_array_equal(*same)
    technical = standard_views()["technical"].frames
    for count in (1, 2, 3, 26, 240):
        found = technical.indices(count, rng)
        assert len(found) == 96
        assert 0 <= found.min() <= found.max() < count


def test_frames_repeat_with_the_seed_and_move_without() -> None:
    sampler = FrameSampler(fsize_t=4, fragments_t=3, frame_interval=2, num_clips=2)
    draws = [sampler.indices(120, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(draws[0]) == 24
    begins = np.array(draws[0]).reshape(2, 3, 4)[..., 0] - np.array([0, 40, 80])
    assert begins.min() >= 0
    assert begins.max() < 32


@pytest.mark.parametrize(("height", "width"), [(300, 260), (120, 90), (224, 224), (60, 400)])
def test_fragments_cover_the_picture_in_order(height: int, width: int) -> None:
    """Rows and columns are written into the pixels, so that it shows where each crop came from."""
    rows = torch.linspace(0, 255, height).round()[:, None].expand(height, width)
    columns = torch.linspace(0, 255, width).round()[None].expand(height, width)
    video = torch.stack([rows, columns, rows]).to(torch.uint8)[:, None]
    generator = torch.Generator().manual_seed(3)
    found = FragmentGrid().sample(video, generator)
    assert found.shape == (3, 1, 224, 224)
    tops, lefts = found[0, 0, ::32, 0].int(), found[1, 0, 0, ::32].int()
    for places in (tops, lefts):
        assert places[0] <= 255 / 7
        assert places[-1] >= 255 * 5.5 / 7
        assert (places.diff() > 0).all()
    again = FragmentGrid().sample(video, torch.Generator().manual_seed(3))
    assert torch.equal(found, again)


@pytest.mark.parametrize(("height", "width"), [(120, 90), (60, 400), (20, 24)])
def test_the_published_layout_leaves_the_lower_right_of_a_small_picture_out(height: int, width: int) -> None:
    rows = torch.linspace(0, 255, height).round()[:, None].expand(height, width)
    columns = torch.linspace(0, 255, width).round()[None].expand(height, width)
    video = torch.stack([rows, columns, rows]).to(torch.uint8)[:, None]
    generator = torch.Generator().manual_seed(3)
    seen, blind = (FragmentGrid().sample(video, generator, compatible=kept)[0] for kept in (False, True))
    assert seen.max() > 230
    # It is enlarged until it fits the grid, but cut from as many rows as it had before.
    ratio = min(height / 224, width / 224)
    assert blind.max() < 255 * max(ratio, 32 * ratio / height) + 5


def test_the_size_of_an_enlarged_picture_is_known_before() -> None:
    grid = FragmentGrid(fragments_h=3, fragments_w=3, fsize_h=8, fsize_w=8)
    for height in range(3, 25):
        for width in range(3, 40, 3):
            image = torch.zeros(3, height, width, dtype=torch.uint8)
            assert grid._enlarged(image).shape[1:] == grid._enlarged_size(height, width)
            assert grid.sample(image[:, None], torch.Generator()).shape == (3, 1, 24, 24)


def test_crops_are_kept_for_a_group_of_frames_and_drawn_anew_for_the_next() -> None:
    grid = FragmentGrid(fragments_h=2, fragments_w=3, fsize_h=8, fsize_w=8, aligned=2)
    video = torch.randint(
        0, 256, (3, 1, 60, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    found = grid.sample(video.expand(3, 4, 60, 90), torch.Generator().manual_seed(1))
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 2], found[:, 3])
    assert not torch.equal(found[:, 1], found[:, 2])
    with pytest.raises(ValueError, match="got 3, expected a multiple of aligned"):
        grid.draw(3, 60, 90, torch.Generator())


def test_antialias_is_off_unless_asked_for() -> None:
    stripes = torch.zeros(3, 1, 448, 448, dtype=torch.uint8)
    stripes[..., ::4] = 255
    plain, smooth = (Squash(antialias=antialias).sample(stripes).float() for antialias in (False, True))
    assert torch.equal(plain, standard_views()["aesthetic"].pixels.sample(stripes).float())
    assert smooth.std() < 0.8 * plain.std()


def test_views_are_sampled_from_a_stream_of_only_the_needed_frames() -> None:
    views = {
        "technical": View.from_config(
            {
                "clip_len": 4,
                "num_clips": 2,
                "frame_interval": 2,
                "fragments_h": 2,
                "fragments_w": 2,
                "aligned": 4,
            }
        ),
        "aesthetic": View.from_config(
            {"clip_len": 4, "t_frag": 4, "num_clips": 1, "frame_interval": 2, "size_h": 32, "size_w": 48}
        ),
    }
    video = torch.randint(
        0, 256, (3, 40, 80, 100), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    indices = draw_frames(views, 40, np.random.default_rng(5))
    wanted = sorted({index for found in indices.values() for index in found.tolist()})
    stream = ((index, video[:, index]) for index in wanted)
    found = sample_views(stream, views, indices, torch.Generator().manual_seed(1))
    assert {name: tuple(view.shape) for name, view in found.items()} == {
        "technical": (2, 3, 4, 64, 64),
        "aesthetic": (1, 3, 4, 32, 48),
    }
    whole = FragmentGrid(fragments_h=2, fragments_w=2, aligned=4).sample(
        video[:, indices["technical"]], torch.Generator().manual_seed(1)
    )
    assert torch.equal(torch.cat(list(found["technical"]), dim=1), whole)
    cut = ((index, video[:, index]) for index in wanted[:-1])
    with pytest.raises(ValueError, match=f"1 did not come, the first is {wanted[-1]}"):
        sample_views(cut, views, indices, torch.Generator())


def test_fusion_takes_its_scores_by_name_in_either_order() -> None:
    one, other = fuse(technical=0.2, aesthetic=-0.05), fuse(aesthetic=-0.05, technical=0.2)
    assert one == other
    assert one["overall"] != fuse(technical=-0.05, aesthetic=0.2)["overall"]
    assert fuse(technical=0.1107, aesthetic=-0.08285)["overall"] == pytest.approx(0.5)
    extreme = fuse(technical=np.array([-1e4, 1e4]), aesthetic=np.array([-1e4, 1e4]))
    np.testing.assert_array_equal(extreme["overall"], [0.0, 1.0])


@pytest.mark.parametrize(
    ("suffix", "nested", "with_index"),
    [(".pth", False, True), (".pth", True, False), (".safetensors", False, False)],
)
def test_checkpoints_flat_or_nested_with_or_without_indices(
    tmp_path: Path, suffix: str, nested: bool, with_index: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny()
    tensors = {k: v for k, v in model.state_dict().items() if with_index or not k.endswith("position_index")}
    path = tmp_path / f"DOVER{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors, "epoch": 3} if nested else tensors, path)
    with caplog.at_level(logging.WARNING):
        loaded = load_dover(path, "dover", TINY)
    assert "non-commercial" in caplog.text
    views = {
        name: torch.randint(0, 256, (1, 3, 4, 64, 64), dtype=torch.uint8)
        for name in ("technical", "aesthetic")
    }
    with torch.inference_mode():
        for name, found in loaded(views).items():
            assert torch.equal(found, model(views)[name])
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code was run",))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("code", "cannot be read as tensors"),
        ("garbage", "cannot be read as tensors"),
        ("list", "holds a list, expected a state dict"),
        ("heads", "the file has heads only"),
        ("shape", r"technical_head.fc_hid.weight is \(8, 23, 1, 1, 1\), expected \(8, 24, 1, 1, 1\)"),
        ("unknown", "0 names missing, e.g. none, 1 unknown, e.g. backbone.x"),
        ("nan", "aesthetic_head.fc_last.bias holds no finite numbers"),
        ("index", "is not that of a window of this size"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(
    what: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors: Any = dict(tiny().state_dict())
    if what == "code":
        tensors["x"] = _Bomb()
    elif what == "list":
        tensors = [1]
    elif what == "heads":
        tensors = {name: value for name, value in tensors.items() if "_head." in name}
    elif what == "shape":
        tensors["technical_head.fc_hid.weight"] = torch.zeros(8, 23, 1, 1, 1)
    elif what == "unknown":
        tensors["backbone.x"] = torch.zeros(1)
    elif what == "nan":
        tensors["aesthetic_head.fc_last.bias"] = torch.full((1,), float("nan"))
    elif what == "index":
        name = "technical_backbone.layers.0.blocks.0.attn.relative_position_index"
        tensors[name] = tensors[name] + 10**6
    path = tmp_path / "weights.pth"
    torch.save(tensors, path)
    if what == "garbage":
        path.write_bytes(b"\x80\x02" + bytes(range(256)))
    with pytest.raises(DoverError, match=message) as caught:
        load_dover(path, "dover", TINY)
    assert "\n" not in str(caught.value)
    assert "code was run" not in capsys.readouterr().out


def test_a_classifier_that_nothing_uses_may_be_absent(tmp_path: Path) -> None:
    config = {**TINY, "technical_backbone": {**TINY["aesthetic_backbone"], "variant": "v2+GRN"}}
    model = Dover(**config)
    assert isinstance(model.technical_backbone, ConvNeXt3D)
    tensors = model.state_dict()
    assert tensors["technical_backbone.head.weight"].shape == (1000, 24)
    torch.save(
        {name: value for name, value in tensors.items() if "_backbone.head." not in name}, tmp_path / "m.pth"
    )
    load_dover(tmp_path / "m.pth", "dover-mobile", config)


def test_scores_that_are_no_numbers_are_an_error() -> None:
    model = tiny()
    model.technical_head.fc_last.bias.data.fill_(float("inf"))
    views = {name: torch.zeros(1, 3, 4, 64, 64, dtype=torch.uint8) for name in ("technical", "aesthetic")}
    with pytest.raises(DoverError, match="expected finite numbers"):
        model.score(views)
