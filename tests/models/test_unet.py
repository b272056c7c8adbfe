"""What the network does beyond parity: shapes, options, refusals and diffusers' features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    attention_backend,
)
from torch import nn

from hummingbird import runtime
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.models.blocks import PointwiseConv1d, TemporalConv3d, plain_attention
from hummingbird.models.embeddings import sinusoidal_embedding
from tests.models.tiny import tiny_inputs, tiny_unet


def run(unet: UNetSpatioTemporalModel, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return unet(**inputs, return_dict=False)[0]


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 4, 2), (2, 2, 4), (5, 6, 10), (26, 4, 4)])
def test_any_number_of_frames_and_any_divisible_size(num_frames: int, height: int, width: int) -> None:
    inputs = tiny_inputs(1, num_frames, height, width)
    output = run(tiny_unet(), **inputs)
    assert output.shape == inputs["sample"].shape
    assert output.is_contiguous()
    assert output.isfinite().all()


def test_output_object_and_tuple_agree() -> None:
    unet, inputs = tiny_unet(), tiny_inputs()
    with torch.no_grad():
        assert torch.equal(unet(**inputs).sample, unet(**inputs, return_dict=False)[0])


def test_fresh_network_predicts_zero() -> None:
    unet = UNetSpatioTemporalModel(
        **{key: value for key, value in tiny_unet().config.items() if key[0] != "_"}
    )
    assert not run(unet.eval(), **tiny_inputs()).any()


def test_videos_of_a_batch_do_not_mix() -> None:
    unet, inputs = tiny_unet(), tiny_inputs(batch_size=3)
    together = run(unet, **inputs, fps=torch.tensor([8, 16, 24]))
    for index, fps in enumerate((8, 16, 24)):
        one = {key: value[index : index + 1] for key, value in inputs.items()}
        torch.testing.assert_close(
            run(unet, **one, fps=fps), together[index : index + 1], atol=1e-5, rtol=1e-5
        )


def test_frame_rate_forms_agree_and_matter() -> None:
    unet, inputs = tiny_unet(), tiny_inputs()
    default = run(unet, **inputs)
    for fps in (16, 16.0, torch.tensor(16), torch.tensor([16]), torch.tensor([16.0, 16.0])):
        assert torch.equal(run(unet, **inputs, fps=fps), default)
    assert not torch.allclose(run(unet, **inputs, fps=8), default)


def test_timestep_forms_agree() -> None:
    unet, inputs = tiny_unet(), tiny_inputs()
    inputs.pop("timestep")
    whole = run(unet, **inputs, timestep=torch.tensor([500, 500]))
    for timestep in (500, 500.0, torch.tensor(500), torch.tensor([500])):
        assert torch.equal(run(unet, **inputs, timestep=timestep), whole)


def test_reversed_video_gives_the_reversed_prediction() -> None:
    # there is no temporal position anywhere: only the convolutions tell forwards from backwards
    unet, inputs = tiny_unet(temporal_conv=False), tiny_inputs()
    forwards = run(unet, **inputs)
    inputs["sample"] = inputs["sample"].flip(2)
    torch.testing.assert_close(run(unet, **inputs).flip(2), forwards, atol=1e-5, rtol=1e-5)


def test_without_temporal_layers_every_frame_is_an_image() -> None:
    unet, inputs = tiny_unet(), tiny_inputs(num_frames=3)
    full = run(unet, **inputs)
    unet.temporal_layers_enabled = False
    video = run(unet, **inputs)
    assert not torch.allclose(video, full)
    for frame in range(3):
        image = {**inputs, "sample": inputs["sample"][:, :, frame : frame + 1]}
        torch.testing.assert_close(run(unet, **image), video[:, :, frame : frame + 1], atol=1e-5, rtol=1e-5)
    unet.train()
    unet(**inputs).sample.sum().backward()
    trained = {name for name, parameter in unet.named_parameters() if parameter.grad is not None}
    assert not any("temopral_conv" in name or "init_attn" in name for name in trained)
    assert "input_blocks.1.1.proj_in.weight" in trained
    assert "input_blocks.1.2.proj_in.weight" not in trained
    unet.temporal_layers_enabled = True
    assert torch.equal(run(unet.eval(), **inputs), full)


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({"frame_position_embedding": True}, {"pos_proj", "out"}),
        ({"pooled_text_embedding": True}, {"text_proj", "out"}),
        ({"frame_position_embedding": True, "pooled_text_embedding": True}, {"pos_proj", "text_proj", "out"}),
    ],
)
def test_frame_embedding(options: dict[str, bool], extra: set[str]) -> None:
    unet, inputs = tiny_unet(**options), tiny_inputs(num_frames=4)
    names = {name for name in unet.state_dict() if name.startswith("frame_embedding.")}
    assert {name.split(".")[1] for name in names} == extra
    plain = tiny_unet()
    plain.load_state_dict({key: value for key, value in unet.state_dict().items() if key not in names})
    assert not torch.allclose(run(unet, **inputs), run(plain, **inputs))
    with torch.no_grad():
        unet.frame_embedding.out.weight.zero_()
        unet.frame_embedding.out.bias.zero_()
    torch.testing.assert_close(run(unet, **inputs), run(plain, **inputs), atol=1e-5, rtol=1e-5)
    assert run(unet, **tiny_inputs(num_frames=1)).isfinite().all()


def test_frame_embedding_formula() -> None:
    unet = tiny_unet(frame_position_embedding=True, pooled_text_embedding=True)
    embed, text = unet.frame_embedding, torch.randn(2, 5, 24)
    for frame in range(3):
        position = sinusoidal_embedding(torch.tensor([1000.0 * frame / 2]), 32)
        expected = embed.out(nn.functional.silu(embed.pos_proj(position) + embed.text_proj(text.mean(1))))
        torch.testing.assert_close(embed(text, 3)[:, frame], expected, atol=1e-5, rtol=1e-5)


def test_blocks_per_level_and_pruned_layers() -> None:
    unet = tiny_unet(num_res_blocks=[2, 1])
    names = ["input_blocks.2.0", "input_blocks.2.2", "middle_block.1", "output_blocks.0.0.temopral_conv"]
    pruned = tiny_unet(num_res_blocks=[2, 1], pruned_layers=names)
    expected = {
        name for name in unet.state_dict() if not any(name.startswith(f"{layer}.") for layer in names)
    }
    assert set(pruned.state_dict()) == expected
    # a pruned transformer or convolution is one whose residual branch is zero
    for name in (
        "input_blocks.2.2.proj_out",
        "middle_block.1.proj_out",
        "output_blocks.0.0.temopral_conv.conv4.3",
    ):
        for parameter in unet.get_submodule(name).parameters():
            nn.init.zeros_(parameter)
    unet.input_blocks[2][0] = nn.Identity()
    pruned.load_state_dict({name: value for name, value in unet.state_dict().items() if name in expected})
    torch.testing.assert_close(run(pruned, **tiny_inputs()), run(unet, **tiny_inputs()), atol=1e-6, rtol=1e-6)


def test_plainer_networks() -> None:
    unet = tiny_unet(
        in_channels=8,
        out_channels=8,
        init_attention=False,
        temporal_conv=False,
        temporal_attention=False,
        fps_conditioning=False,
        has_middle_block=False,
        attention_resolutions=(2,),
    )
    inputs = {**tiny_inputs(), "sample": torch.randn(2, 8, 3, 8, 4)}
    assert run(unet, **inputs).shape == (2, 8, 3, 8, 4)
    names = " ".join(unet.state_dict())
    assert not any(part in names for part in ("temopral", "init_attn", "fps", "middle", "input_blocks.1.1"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": torch.zeros(2, 3, 3, 8, 4)}, "sample: got shape"),
        ({"sample": torch.zeros(2, 4, 8, 4)}, "sample: got shape"),
        ({"sample": torch.zeros(2, 4, 3, 7, 4)}, "height 7"),
        ({"sample": torch.zeros(2, 4, 3, 8, 0)}, "width 0"),
        ({"sample": torch.zeros(2, 4, 0, 8, 4)}, "0 frames"),
        ({"encoder_hidden_states": torch.zeros(1, 5, 24)}, "one text per video"),
        ({"encoder_hidden_states": torch.zeros(2, 5, 23)}, "encoder_hidden_states"),
        ({"encoder_hidden_states": torch.zeros(2, 0, 24)}, "encoder_hidden_states"),
        ({"timestep": torch.zeros(3)}, "timestep: got shape"),
        ({"fps": torch.zeros(2, 2)}, "fps: got shape"),
        ({"timestep_cond": torch.zeros(2, 16)}, "no guidance embedding"),
    ],
)
def test_impossible_inputs_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        run(tiny_unet(), **{**tiny_inputs(), **change})
    assert "\n" not in str(error.value)


def test_guidance_embedding() -> None:
    unet, inputs = tiny_unet(time_cond_proj_dim=16), tiny_inputs()
    without = run(unet, **inputs)
    assert torch.equal(run(unet, **inputs, timestep_cond=torch.zeros(2, 16)), without)
    assert not torch.allclose(run(unet, **inputs, timestep_cond=torch.ones(2, 16)), without)
    with pytest.raises(ValueError, match="timestep_cond: got shape"):
        run(unet, **inputs, timestep_cond=torch.ones(2, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_res_blocks": [1]}, "num_res_blocks"),
        ({"num_res_blocks": 0}, "num_res_blocks"),
        ({"model_channels": 40}, "norm_num_groups"),
        ({"num_head_channels": 24}, "num_head_channels"),
        ({"attention_resolutions": (3,)}, "attention_resolutions"),
        ({"pruned_layers": ["input_blocks.9.0"]}, "input_blocks.9.0"),
        ({"pruned_layers": ["input_blocks.3.0"]}, "32 to 64"),
    ],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_unet(**options)


def test_temporal_dropout_is_a_training_matter() -> None:
    unet, inputs = tiny_unet(), tiny_inputs()
    assert torch.equal(run(unet, **inputs), run(unet, **inputs))
    unet.train()
    assert not torch.equal(run(unet, **inputs), run(unet, **inputs))
    unet = tiny_unet(temporal_conv_dropout=0.0).train()
    assert torch.equal(run(unet, **inputs), run(unet, **inputs))


@pytest.mark.parametrize("channels_last", [True, False])
def test_temporal_layers_equal_plain_torch(channels_last: bool) -> None:
    video = torch.randn(2, 6, 5, 4, 3)
    if channels_last:
        video = video.to(memory_format=torch.channels_last_3d)
    conv = TemporalConv3d(6, 7, (3, 1, 1), padding=(1, 0, 0))
    expected = nn.functional.conv3d(video, conv.weight, conv.bias, padding=(1, 0, 0))
    torch.testing.assert_close(conv(video), expected, atol=1e-5, rtol=1e-5)
    point, sequence = PointwiseConv1d(6, 7, 1), torch.randn(2, 6, 5)
    expected = nn.functional.conv1d(sequence, point.weight, point.bias)
    torch.testing.assert_close(point(sequence), expected, atol=1e-5, rtol=1e-5)


def test_plain_attention_equals_the_fused_kernel() -> None:
    query, key, value = torch.randn(3, 5, 2, 8), torch.randn(3, 7, 2, 8), torch.randn(3, 7, 2, 8)
    fused = nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    torch.testing.assert_close(
        plain_attention(query, key, value), fused.transpose(1, 2), atol=1e-5, rtol=1e-5
    )


def test_save_and_load(tmp_path: Path) -> None:
    unet = tiny_unet(num_res_blocks=[1, 2], time_cond_proj_dim=16)
    unet.save_pretrained(tmp_path)
    loaded = UNetSpatioTemporalModel.from_pretrained(tmp_path)
    assert torch.equal(run(loaded, **tiny_inputs()), run(unet, **tiny_inputs()))
    half = UNetSpatioTemporalModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    again = UNetSpatioTemporalModel.from_config(loaded.config)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in unet.state_dict().items()
    }


@pytest.mark.parametrize("train_temporal", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(train_temporal: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        unet = tiny_unet(temporal_conv_dropout=0.0).train()
        unet.temporal_layers_enabled = train_temporal
        if checkpointing:
            unet.enable_gradient_checkpointing()
            assert unet.is_gradient_checkpointing
        unet(**tiny_inputs()).sample.square().mean().backward()
        gradients.append({n: p.grad for n, p in unet.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


def test_every_parameter_learns() -> None:
    unet = tiny_unet(time_cond_proj_dim=16, frame_position_embedding=True, pooled_text_embedding=True)
    unet(**tiny_inputs(), timestep_cond=torch.randn(2, 16)).sample.square().mean().backward()
    assert not [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]


def test_lora(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    unet, inputs = tiny_unet(), tiny_inputs()
    before = run(unet, **inputs)
    targets = [
        name for name, module in unet.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d))
    ]
    unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets))
    torch.testing.assert_close(run(unet, **inputs), before, atol=1e-5, rtol=1e-5)
    unet.train()
    unet(**inputs).sample.square().mean().backward()
    learns = {name for name, p in unet.named_parameters() if p.grad is not None}
    assert learns
    assert all("lora_" in name for name in learns)
    assert any("temopral_conv.conv1.2.lora_B" in name for name in learns)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    unet.eval()
    unfused = run(unet, **inputs)
    assert not torch.allclose(unfused, before)
    unet.save_lora_adapter(tmp_path)
    unet.fuse_lora()
    torch.testing.assert_close(run(unet, **inputs), unfused, atol=1e-4, rtol=1e-4)
    other = tiny_unet()
    other.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(run(other.eval(), **inputs), unfused, atol=1e-5, rtol=1e-5)


def test_attention_processors() -> None:
    unet = tiny_unet()
    processors = unet.attn_processors
    assert len(processors) == 2 * sum(type(m).__name__ == "BasicTransformerBlock" for m in unet.modules())
    calls: list[str] = []

    class Counting(type(next(iter(processors.values())))):  # type: ignore[misc]
        def __call__(self, attn: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
            calls.append(type(attn).__name__)
            return super().__call__(attn, *args, **kwargs)

    expected = run(unet, **tiny_inputs())
    unet.set_attn_processor(Counting())
    assert torch.equal(run(unet, **tiny_inputs()), expected)
    assert len(calls) == len(processors)


def test_attention_goes_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from hummingbird.models import blocks

    seen: list[Any] = []
    original: Callable[..., torch.Tensor] = blocks.dispatch_attention_fn

    def spy(*args: Any, backend: Any = None, **kwargs: Any) -> torch.Tensor:
        seen.append(backend)
        return original(*args, backend=backend, **kwargs)

    monkeypatch.setattr(blocks, "dispatch_attention_fn", spy)
    unet = tiny_unet()
    plain = run(unet, **tiny_inputs())
    # few keys on a CPU: the default backend is replaced by its formula
    assert [backend.value for backend in seen] == ["native"] * seen.count(AttentionBackendName.NATIVE)
    assert len(seen) < len(unet.attn_processors)
    seen.clear()
    with attention_backend("_native_math"):
        inside = run(unet, **tiny_inputs())
    before, _ = _AttentionBackendRegistry.get_active_backend()
    unet.set_attention_backend("_native_math")
    chosen = run(unet, **tiny_inputs())
    unet.reset_attention_backend()
    _AttentionBackendRegistry.set_active_backend(before)
    assert [backend.value for backend in seen] == ["_native_math"] * 2 * len(unet.attn_processors)
    assert torch.equal(inside, chosen)
    torch.testing.assert_close(inside, plain, atol=1e-5, rtol=1e-5)
    assert torch.equal(run(unet, **tiny_inputs()), plain)


def test_layerwise_casting() -> None:
    unet, inputs = tiny_unet(), tiny_inputs()
    before = run(unet, **inputs)
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = {name: parameter.dtype for name, parameter in unet.named_parameters()}
    assert stored["input_blocks.1.1.proj_in.weight"] == torch.float8_e4m3fn
    assert stored["input_blocks.1.0.temopral_conv.conv1.2.weight"] == torch.float8_e4m3fn
    assert stored["init_attn.0.proj_in.weight"] == torch.float8_e4m3fn
    for name in ("input_blocks.1.0.in_layers.0.weight", "out.2.weight", "time_embed.0.weight"):
        assert stored[name] == torch.float32
    after = run(unet, **inputs)
    assert (after - before).abs().mean() < 0.25 * before.abs().mean()
    assert not torch.equal(after, before)


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offload(offload_type: str) -> None:
    unet, inputs = tiny_unet(), tiny_inputs()
    before = run(unet, **inputs)
    unet.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=offload_type,
        num_blocks_per_group=1 if offload_type == "block_level" else None,
    )
    torch.testing.assert_close(run(unet, **inputs), before, atol=1e-6, rtol=1e-6)


def test_forward_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        pytest.fail("a tensor's value was read on the host")

    for name in ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    unet = tiny_unet_without_reads()
    for fps in (8, torch.tensor([8, 16], device="meta")):
        unet(torch.empty(2, 4, 3, 8, 4, device="meta"), 5, torch.empty(2, 5, 24, device="meta"), fps=fps)


def tiny_unet_without_reads() -> UNetSpatioTemporalModel:
    from tests.models.tiny import CONFIG

    with torch.device("meta"):
        return UNetSpatioTemporalModel(**CONFIG, frame_position_embedding=True, pooled_text_embedding=True)


def test_memory_layout_changes_no_result() -> None:
    unet, inputs = tiny_unet(), tiny_inputs()
    unet.channels_last = True
    before = run(unet, **inputs)
    unet.channels_last = False
    torch.testing.assert_close(run(unet, **inputs), before, atol=1e-5, rtol=1e-5)


def test_one_value_per_norm_group_is_refused() -> None:
    unet = tiny_unet()
    with pytest.raises(ValueError, match="one value per group"):
        run(unet, **tiny_inputs(height=2, width=2))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_linear_layers_see_tokens_that_fold_into_one_matrix(batch_size: int) -> None:
    """Of others torch makes a batch of products, with a copy of the weights for each."""
    unet = tiny_unet()
    seen = []

    def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        tokens = inputs[0].transpose(1, 2) if isinstance(layer, PointwiseConv1d) else inputs[0]
        seen.append(tokens.flatten(0, -2).data_ptr() == tokens.data_ptr())

    for layer in unet.modules():
        if isinstance(layer, (nn.Linear, PointwiseConv1d)):
            layer.register_forward_pre_hook(look)
    run(unet, **tiny_inputs(batch_size))
    assert len(seen) > 50
    assert all(seen)


def test_half_precision_on_a_cpu_lays_out_weights_as_inputs() -> None:
    unet = tiny_unet().bfloat16()
    inputs = tiny_inputs()
    inputs |= {name: inputs[name].bfloat16() for name in ("sample", "encoder_hidden_states")}
    before = run(unet, **inputs)
    names = {name: tuple(parameter.shape) for name, parameter in unet.named_parameters()}
    runtime.speed_up([unet], torch.device("cpu"))
    assert {name: tuple(parameter.shape) for name, parameter in unet.named_parameters()} == names
    for layer in unet.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        elif isinstance(layer, TemporalConv3d):
            assert layer.weight.squeeze(-1).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(run(unet, **inputs), before, atol=2e-2, rtol=2e-2)
