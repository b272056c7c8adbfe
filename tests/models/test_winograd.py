"""Fast convolutions give what plain ones give, wherever they are used, and step aside elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from hummingbird.models import UNetSpatioTemporalModel, winograd
from hummingbird.models.blocks import TemporalConv3d
from tests.golden_files import golden_tensors
from tests.models.test_parity import GOLDENS, golden_case, load_golden_unet

CHANNELS = 128


def conv2d(channels: int = CHANNELS) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, channels + 8, 3, padding=1)).requires_grad_(False)


def temporal(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    conv = TemporalConv3d(CHANNELS, CHANNELS, (3, 1, 1), padding=(1, 0, 0), bias=bias)
    return nn.Sequential(conv).requires_grad_(False)


def check(network: nn.Sequential, inputs: torch.Tensor, tile: int) -> None:
    """The error against float64 is that of rounding: a few times float32's precision of outputs.

    The plain layer's own is half of it on a CPU with AVX2, and a seventh on one with AVX-512.
    """
    expected = copy.deepcopy(network).double()(inputs.double())
    assert winograd.enable(network) == 1
    with torch.no_grad():
        got = network(inputs)
    assert list(network[0]._winograd._by_tile) == [tile]
    assert got.shape == expected.shape
    error = (got - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < {2: 6, 4: 16}[tile] * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((3, CHANNELS, 17, 30), 4),
        ((1, CHANNELS, 64, 64), 4),
        ((4, CHANNELS, 2, 3), 2),
        ((2, CHANNELS, 6, 5), 2),
    ],
)
def test_pictures(shape: tuple[int, ...], tile: int) -> None:
    check(conv2d(), torch.randn(shape), tile)
    check(conv2d(), torch.randn(shape).contiguous(memory_format=torch.channels_last), tile)


def test_pieces_of_a_picture_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = conv2d(), torch.randn(3, CHANNELS, 40, 24)
    winograd.enable(network)
    with torch.no_grad():
        whole = network(inputs)
        for most in (7, 50, 130):
            monkeypatch.setattr(winograd, "_MAX_TILES", most)
            torch.testing.assert_close(network(inputs), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("shape", "tile", "bias"),
    [
        ((2, CHANNELS, 16, 4, 6), 4, True),
        ((1, CHANNELS, 26, 9, 5), 4, False),
        ((1, CHANNELS, 6, 3, 2), 2, True),
    ],
)
def test_videos(shape: tuple[int, ...], tile: int, bias: bool) -> None:
    check(temporal(bias), torch.randn(shape), tile)
    check(temporal(bias), torch.randn(shape).contiguous(memory_format=torch.channels_last_3d), tile)


def test_one_frame_stays_plain() -> None:
    network, inputs = temporal(), torch.randn(1, CHANNELS, 1, 32, 32)
    expected = network(inputs)
    winograd.enable(network)
    with torch.no_grad():
        assert torch.equal(network(inputs), expected)


@pytest.mark.golden
@pytest.mark.parametrize(("name", "case"), GOLDENS)
def test_network_equals_the_original(name: str, case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    unet = load_golden_unet(name)
    assert winograd.enable(unet) > 10
    with torch.no_grad():
        output = unet(**golden_case(name, case), return_dict=False)[0]
    assert sum(bool(layer._winograd._by_tile) for layer in unet.modules() if hasattr(layer, "_winograd")) > 10
    torch.testing.assert_close(
        output, golden_tensors(f"{name}/outputs")[f"case{case}.output"], atol=5e-5, rtol=5e-5
    )


def test_network_keeps_its_names_and_its_parameters() -> None:
    unet = UNetSpatioTemporalModel(
        model_channels=64,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        cross_attention_dim=16,
    )
    before = dict(unet.named_parameters())
    classes = {name: type(module) for name, module in unet.named_modules()}
    count = winograd.enable(unet)
    assert count > 5
    assert all(parameter is before[name] for name, parameter in unet.named_parameters())
    assert list(before) == [name for name, _ in unet.named_parameters()]
    narrow = [
        layer for layer in unet.modules() if isinstance(layer, nn.Conv2d) and layer.out_channels < CHANNELS
    ]
    assert narrow
    assert not any(isinstance(layer, winograd.WinogradConv2d) for layer in narrow)
    assert winograd.enable(unet) == 0
    assert winograd.disable(unet) == count
    assert {name: type(module) for name, module in unet.named_modules()} == classes


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, stride=2),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=0),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(CHANNELS, CHANNELS, 1),
        nn.Conv2d(CHANNELS, CHANNELS - 1, 3, padding=1),
    ],
)
def test_other_convolutions_stay(layer: nn.Module) -> None:
    assert winograd.enable(nn.Sequential(layer)) == 0


@pytest.mark.parametrize("change", ["in place", "through data", "another tensor"])
def test_changed_weights_are_seen(change: str) -> None:
    network, inputs = conv2d(), torch.randn(2, CHANNELS, 12, 12)
    winograd.enable(network)
    with torch.no_grad():
        first = network(inputs)
        assert torch.equal(network(inputs), first)
        if change == "in place":
            network[0].weight[5].mul_(2)
        elif change == "through data":
            network[0].weight.data *= 1.01
        else:
            network[0].weight = nn.Parameter(network[0].weight.flip(0), requires_grad=False)
        expected = F.conv2d(inputs, network[0].weight, network[0].bias, padding=1)
        torch.testing.assert_close(network(inputs), expected, atol=2e-5, rtol=0)


def test_training_and_other_types_are_untouched() -> None:
    plain, inputs = conv2d().requires_grad_(), torch.randn(2, CHANNELS, 12, 12)
    fast = copy.deepcopy(plain)
    winograd.enable(fast)
    for network in (plain, fast):
        network(inputs).square().sum().backward()
    assert torch.equal(plain[0].weight.grad, fast[0].weight.grad)
    with torch.no_grad():
        for dtype in (torch.bfloat16, torch.float64):
            halves = [copy.deepcopy(network).to(dtype)(inputs.to(dtype)) for network in (plain, fast)]
            assert torch.equal(*halves)


def test_exported_graphs_hold_the_plain_convolution() -> None:
    network, inputs = conv2d(), torch.randn(2, CHANNELS, 12, 12)
    winograd.enable(network)
    with torch.no_grad():
        network(inputs)
        graph = str(torch.export.export(network, (inputs,)).graph)
    assert "conv2d" in graph
    assert "bmm" not in graph


def test_compiled_graphs_use_the_weights_they_find() -> None:
    network = nn.Sequential(*conv2d(), *conv2d(CHANNELS + 8))
    inputs = torch.randn(2, CHANNELS, 12, 12)
    winograd.enable(network)
    with torch.no_grad():
        expected = network(inputs)
        count = CompileCounter()
        compiled = torch.compile(network, backend=count, dynamic=False, fullgraph=True)
        torch.testing.assert_close(compiled(inputs), expected, atol=1e-5, rtol=0)
        compiled(inputs + 1)
    assert count.frame_count == 1
