"""What a diffusers text-to-video pipeline must hold, for few-step models and teachers alike."""

from __future__ import annotations

import inspect
import logging

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers import KarrasDiffusionSchedulers, scheduling_lcm
from diffusers.utils import logging as diffusers_logging

from hummingbird import HummingbirdPipeline
from hummingbird.checkpoints import unet_from_ldm, vae_from_ldm
from hummingbird.pipelines import FrameDecodeError, HummingbirdPipelineOutput
from hummingbird.pipelines.prompts import clean_prompt
from hummingbird.schedulers import VideoCrafterDDIMScheduler
from tests.golden_files import golden_config, golden_tensors
from tests.pipelines.tiny import CALL, seeded, tiny_components, tiny_pipeline, tiny_tokenizer

PROMPT = "a red circle moving right"
OTHER = "a blue square growing"


@pytest.fixture(params=[True, False], ids=["few_step", "teacher"], scope="module")
def pipe(request):
    return tiny_pipeline(few_step=request.param)


# ------------------------------------------------------------------------------------------------- parity


@pytest.mark.golden
@pytest.mark.parametrize("corrected", [True, False])
def test_few_step_sampling_follows_the_original(monkeypatch, corrected):
    """Each step from the recorded sample, and all of them in a row, which hands rounding on.

    In a row the recorded run itself is further than 2e-4 from one in float64: there its own tolerance counts.
    """
    config = golden_config("pipeline_hb07")
    inputs, outputs = golden_tensors("pipeline_hb07/inputs"), golden_tensors("pipeline_hb07/outputs")
    unet = unet_from_ldm(config["unet_config"], golden_tensors("unet_hb07_tiny/state_dict"))
    vae = vae_from_ldm(
        {"ddconfig": config["vae_ddconfig"], "embed_dim": config["vae_embed_dim"]},
        golden_tensors("pipeline_hb07/vae_state_dict"),
    )
    pipe = HummingbirdPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduling_lcm.LCMScheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    noise = iter(inputs["noise"])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: next(noise))
    steps = []

    def record(_pipe, _index, timestep, tensors):
        steps.append((int(timestep), tensors["latents"]))
        correct_it = corrected and len(steps) < count
        return {"latents": outputs["prev_sample"][len(steps) - 1]} if correct_it else {}

    count = config["num_inference_steps"]
    latents = pipe(
        prompt_embeds=inputs["prompt_embeds"],
        latents=inputs["latents"],
        fps=config["fps"],
        guidance_scale=config["guidance_scale"],
        num_inference_steps=count,
        output_type="latent",
        callback_on_step_end=record,
    ).frames
    assert [timestep for timestep, _ in steps] == outputs["timesteps"].tolist()
    recorded = config["suggested_tolerance"]["atol"]
    for index, (_, sample) in enumerate(steps[:-1]):
        expected, atol = outputs["prev_sample"][index], 2e-4 if corrected else recorded
        torch.testing.assert_close(sample, expected, rtol=1e-4, atol=atol)
    torch.testing.assert_close(
        latents, outputs["final_latents"], rtol=1e-4, atol=5e-4 if corrected else recorded
    )
    torch.testing.assert_close(pipe.decode_latents(latents), outputs["video"], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ outputs


def test_output_types(pipe):
    calls = {
        kind: pipe(PROMPT, generator=seeded(0), **CALL | {"output_type": kind}).frames
        for kind in ("pil", "np", "pt", "latent")
    }
    assert isinstance(calls["np"], np.ndarray)
    assert calls["np"].shape == (1, 3, 16, 24, 3)
    assert calls["pt"].shape == (1, 3, 3, 16, 24)
    assert calls["latent"].shape == (1, 4, 3, 8, 12)
    assert calls["np"].dtype == np.float32
    assert calls["pt"].dtype == calls["latent"].dtype == torch.float32
    assert 0 <= calls["np"].min() < calls["np"].max() <= 1
    assert np.array_equal(calls["pt"].permute(0, 1, 3, 4, 2).numpy(), calls["np"])
    (video,) = calls["pil"]
    assert len(video) == 3
    assert all(isinstance(frame, PIL.Image.Image) and frame.size == (24, 16) for frame in video)
    assert np.array_equal(np.stack(video), (calls["np"][0] * 255).round().astype("uint8"))
    decoded = pipe.decode_latents(calls["latent"])
    assert decoded.shape == (1, 3, 3, 16, 24)
    assert torch.equal((decoded / 2 + 0.5).clamp(0, 1).transpose(1, 2), calls["pt"])


def test_tuple_equals_dataclass(pipe):
    result = pipe(PROMPT, generator=seeded(0), **CALL)
    plain = pipe(PROMPT, generator=seeded(0), return_dict=False, **CALL)
    assert isinstance(result, HummingbirdPipelineOutput)
    assert isinstance(plain, tuple)
    assert np.array_equal(result.frames, plain[0])


def test_generator_decides_everything(pipe):
    """With the same generator a call repeats itself; the global state neither matters nor moves."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = pipe(PROMPT, generator=seeded(0), eta=1.0, **CALL).frames
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert np.array_equal(pipe(PROMPT, generator=seeded(0), eta=1.0, **CALL).frames, first)
    assert not np.array_equal(pipe(PROMPT, generator=seeded(5), eta=1.0, **CALL).frames, first)


def test_noise_between_steps_comes_from_the_generator(pipe):
    latents = torch.randn(1, 4, 3, 8, 12, generator=seeded(9))
    calls = [
        pipe(PROMPT, generator=seeded(seed), latents=latents, eta=1.0, **CALL).frames for seed in (0, 0, 1)
    ]
    assert np.array_equal(calls[0], calls[1])
    assert not np.allclose(calls[0], calls[2], atol=1e-3)


def test_batch_equals_single(pipe):
    pipe.to(torch.float64)  # sums over other shapes round otherwise, by how much depends on the CPU
    options = CALL | {"eta": 1.0}
    together = pipe([PROMPT, OTHER], generator=seeded(3, 4), **options).frames
    assert together.shape[0] == 2
    for index, (prompt, seed) in enumerate(((PROMPT, 3), (OTHER, 4))):
        alone = pipe(prompt, generator=seeded(seed), **options).frames[0]
        np.testing.assert_allclose(together[index], alone, atol=2e-5)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_videos_per_prompt_lie_side_by_side(pipe):
    pipe.to(torch.float64)
    frames = pipe([PROMPT, OTHER], num_videos_per_prompt=2, generator=seeded(0, 1, 0, 1), **CALL).frames
    for index, (prompt, seed) in enumerate(((PROMPT, 0), (PROMPT, 1), (OTHER, 0), (OTHER, 1))):
        alone = pipe(prompt, generator=seeded(seed), **CALL).frames[0]
        np.testing.assert_allclose(frames[index], alone, atol=2e-5)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 4, 4), (5, 12, 20)])
def test_any_number_of_frames_and_size(pipe, frames, height, width):
    options = CALL | {"num_frames": frames, "height": height, "width": width}
    assert pipe(PROMPT, **options).frames.shape == (1, frames, height, width, 3)


def test_size_comes_from_the_latents(pipe):
    latents = torch.randn(1, 4, 2, 4, 6)
    options = {"num_inference_steps": 1, "output_type": "np", "latents": latents}
    assert pipe(PROMPT, **options).frames.shape == (1, 2, 8, 12, 3)
    with pytest.raises(ValueError, match=r"latents has shape \(1, 4, 2, 4, 6\): expected \(1, 4, 3, 4, 6\)"):
        pipe(PROMPT, num_frames=3, **options)


# --------------------------------------------------------------------------------------------------- text


def test_prompt_embeds_equal_the_prompt(pipe):
    expected = pipe(PROMPT, generator=seeded(0), **CALL).frames
    embeds, negative = pipe.encode_prompt(PROMPT, 1, pipe.do_classifier_free_guidance)
    bare = HummingbirdPipeline(**{**pipe.components, "text_encoder": None, "tokenizer": None})
    bare.set_progress_bar_config(disable=True)
    frames = bare(prompt_embeds=embeds, negative_prompt_embeds=negative, generator=seeded(0), **CALL).frames
    assert np.array_equal(frames, expected)
    with pytest.raises(ValueError, match="loaded without its text encoder"):
        bare(PROMPT, **CALL)


def test_texts_are_encoded_without_the_other_parts(pipe):
    """One pipeline of text parts alone and one of all the others do together what the whole one does."""
    parts = pipe.components
    text_parts = {name: part for name, part in parts.items() if name in ("text_encoder", "tokenizer")}
    nothing = dict.fromkeys(parts)
    with torch.no_grad():
        embeds, negative_embeds = HummingbirdPipeline(**{**nothing, **text_parts}).encode_prompt(PROMPT)
    others = HummingbirdPipeline(**{**parts, **dict.fromkeys(text_parts)})
    others.set_progress_bar_config(disable=True)
    options = CALL | {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    frames = others(generator=seeded(0), **options).frames
    assert np.array_equal(frames, pipe(PROMPT, generator=seeded(0), **CALL).frames)


def test_every_token_is_attended_to_and_none_masked():
    """The U-Net sees the encoder's plain output over all positions, padding included."""
    pipe = tiny_pipeline()
    embeds, negative = pipe.encode_prompt("a red circle", do_classifier_free_guidance=False)
    ids = torch.tensor([[1, 4, 5, 7, 2, 0, 0, 0]])
    assert pipe.tokenizer("a red circle", padding="max_length").input_ids == ids[0].tolist()
    with torch.no_grad():
        assert torch.equal(embeds, pipe.text_encoder(ids)[0])
    assert negative is None


def test_long_prompt_is_cut_with_one_warning(pipe, caplog):
    diffusers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING, logger="hummingbird"):
        pipe.encode_prompt(["a red circle moving right on black blue", PROMPT], 1, False)
    diffusers_logging.disable_propagation()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "10 tokens; only the first 8" in messages[0]


@pytest.mark.parametrize(
    ("typed", "cleaned"),
    [
        (PROMPT, PROMPT),
        ("  a  red\tcircle\n", "a red circle"),
        ("&lt;b&gt; Q&amp;amp;A", "<b> Q&A"),
        ("it\u2019s \u00e2\u20ac\u201d fixed", "it's \u2014 fixed"),
    ],
)
def test_prompts_are_cleaned(typed, cleaned):
    assert clean_prompt(typed) == cleaned


def test_prompt_steers(pipe):
    first = pipe(PROMPT, generator=seeded(0), **CALL).frames
    assert np.abs(first - pipe(OTHER, generator=seeded(0), **CALL).frames).max() > 1e-3


def test_negative_prompt_steers_a_teacher():
    pipe = tiny_pipeline(few_step=False)
    plain = pipe(PROMPT, generator=seeded(0), **CALL).frames
    empty = pipe(PROMPT, negative_prompt="", generator=seeded(0), **CALL).frames
    steered = pipe(PROMPT, negative_prompt=OTHER, generator=seeded(0), **CALL).frames
    embeds = pipe.encode_prompt(OTHER, do_classifier_free_guidance=False)[0]
    by_embeds = pipe(PROMPT, negative_prompt_embeds=embeds, generator=seeded(0), **CALL).frames
    assert np.array_equal(plain, empty)
    assert np.abs(plain - steered).max() > 1e-3
    assert np.array_equal(steered, by_embeds)
    pair = pipe([PROMPT, PROMPT], negative_prompt=["", OTHER], generator=seeded(0, 0), **CALL).frames
    np.testing.assert_allclose(pair, np.concatenate([plain, steered]), atol=2e-5)


# ----------------------------------------------------------------------------------------------- guidance


def count_unet_samples(pipe, **options) -> list[int]:
    sizes: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    pipe(PROMPT, generator=seeded(0), **CALL | options)
    handle.remove()
    return sizes


def test_few_step_model_runs_once_per_step():
    pipe = tiny_pipeline()
    assert count_unet_samples(pipe, guidance_scale=7.5) == [1, 1]
    assert not pipe.do_classifier_free_guidance
    frames = [
        pipe(PROMPT, guidance_scale=scale, generator=seeded(0), **CALL).frames for scale in (7.5, 12.0, 7.5)
    ]
    assert np.abs(frames[0] - frames[1]).max() > 1e-3
    assert np.array_equal(frames[0], frames[2])


def test_teacher_runs_with_and_without_the_prompt():
    pipe = tiny_pipeline(few_step=False)
    assert count_unet_samples(pipe, guidance_scale=7.5) == [2, 2]
    assert count_unet_samples(pipe, guidance_scale=1.0) == [1, 1]


@torch.no_grad()
def test_guidance_formula():
    """One DDIM step by hand: uncond + s * (cond - uncond)."""
    pipe = tiny_pipeline(few_step=False)
    latents = torch.randn(1, 4, 3, 8, 12, generator=seeded(0))
    scale, options = 4.0, CALL | {"num_inference_steps": 1, "output_type": "latent"}
    ours = pipe(PROMPT, guidance_scale=scale, latents=latents, **options).frames
    prompt, empty = pipe.encode_prompt(PROMPT)
    timestep = torch.tensor(999)
    conditional, unconditional = (
        pipe.unet(latents, timestep, embeds, fps=8, return_dict=False)[0] for embeds in (prompt, empty)
    )
    guided = unconditional + scale * (conditional - unconditional)
    expected = pipe.scheduler.step(guided, timestep, latents).prev_sample
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_fps_reaches_the_model(pipe):
    options = {key: value for key, value in CALL.items() if key != "fps"}
    slow, fast, fractional = (
        pipe(PROMPT, fps=fps, generator=seeded(0), **options).frames for fps in (4, 24, 23.976)
    )
    assert np.abs(slow - fast).max() > 1e-4
    assert 0 < np.abs(fractional - fast).max() < np.abs(slow - fast).max()


def test_zero_terminal_snr_starts_at_pure_noise():
    scheduler = tiny_pipeline(few_step=False).scheduler
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[0] == 999
    assert scheduler.alphas_cumprod[999] == 0


@pytest.mark.parametrize(
    "scheduler",
    [
        VideoCrafterDDIMScheduler(use_scale=True),
        DDIMScheduler(clip_sample=False),
        DPMSolverMultistepScheduler(),
        EulerDiscreteScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_teachers_run_with_other_schedulers(scheduler):
    pipe = tiny_pipeline(few_step=False)
    pipe.scheduler = scheduler
    frames = pipe(PROMPT, generator=seeded(0), **CALL | {"num_inference_steps": 4}).frames
    assert np.isfinite(frames).all()
    assert np.array_equal(
        frames, pipe(PROMPT, generator=seeded(0), **CALL | {"num_inference_steps": 4}).frames
    )


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("name", [scheduler.name for scheduler in KarrasDiffusionSchedulers])
def test_teachers_take_every_scheduler_of_diffusers(name):
    pipe = tiny_pipeline(few_step=False)
    pipe.scheduler.register_to_config(skip_prk_steps=True)
    try:
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    except ImportError as error:
        pytest.skip(str(error).strip().splitlines()[0])
    steps = 5 if name.startswith("KDPM2") else 2
    assert pipe(PROMPT, **CALL | {"num_inference_steps": steps}).frames.shape == (1, 3, 16, 24, 3)


def test_seven_steps_are_eight_for_videocrafter():
    pipe = tiny_pipeline(few_step=False)
    pipe.scheduler = VideoCrafterDDIMScheduler()
    pipe(PROMPT, generator=seeded(0), **CALL | {"num_inference_steps": 7, "output_type": "latent"})
    assert pipe.num_timesteps == 8


# ---------------------------------------------------------------------------------------------- callbacks


def test_callback_sees_and_replaces_tensors(pipe):
    seen = []

    def zero_at_the_end(_pipe, index, timestep, tensors):
        seen.append((index, int(timestep), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if index == 1 else {}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    latents = pipe(
        PROMPT,
        callback_on_step_end=zero_at_the_end,
        callback_on_step_end_tensor_inputs=names,
        **CALL | {"output_type": "latent"},
    ).frames
    assert latents.abs().sum() == 0
    assert [entry[0] for entry in seen] == [0, 1]
    assert seen[0][1] > seen[1][1]
    assert seen[0][2] == sorted(names)
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs has noise"):
        pipe(PROMPT, callback_on_step_end_tensor_inputs=["noise"], **CALL)


def test_callback_changes_guidance(pipe):
    def stronger(running, _index, _timestep, tensors):
        running._guidance_scale += 1
        return tensors

    changed = pipe(PROMPT, guidance_scale=3.0, callback_on_step_end=stronger, generator=seeded(0), **CALL)
    assert pipe.guidance_scale == 5.0
    constant = pipe(PROMPT, guidance_scale=3.0, generator=seeded(0), **CALL)
    assert np.abs(changed.frames - constant.frames).max() > 1e-5


def test_interrupt_skips_the_rest(pipe):
    steps = []

    def stop(running, index, _timestep, _tensors):
        steps.append(index)
        running._interrupt = True
        return {}

    pipe(PROMPT, callback_on_step_end=stop, **CALL)
    assert steps == [0]


# ------------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 18}, r"height=18, width=24: expected multiples of 4 .* height=16, width=24"),
        ({"width": 0}, "width=0: expected a whole number"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"num_frames": 2.5}, r"num_frames=2\.5"),
        ({"fps": 0}, "fps=0: expected"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt=0"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf"),
        ({"output_type": "gif"}, "output_type='gif': expected one of pil, np, pt, latent"),
        ({"decode_chunk_size": 0}, "decode_chunk_size=0"),
        ({"prompt": None}, "neither of prompt and prompt_embeds"),
        ({"prompt": []}, "prompt is list"),
        ({"prompt": 3}, "prompt is int"),
        ({"prompt_embeds": torch.zeros(1, 8, 16)}, "both of prompt and prompt_embeds"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 8, 5)}, r"prompt_embeds has shape \(1, 8, 5\)"),
        ({"generator": seeded(0, 1)}, "2 generators for 1 videos"),
        ({"attention_kwargs": {"mask": 1.0}}, "attention_kwargs: got mask, expected only 'scale'"),
        ({"latents": torch.zeros(1, 4, 3, 8, 8)}, "latents has shape"),
    ],
)
def test_wrong_inputs_are_refused(pipe, change, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": PROMPT, **CALL, **change})


def test_few_step_model_refuses_what_it_cannot_do():
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="leave the negative prompt out"):
        pipe(PROMPT, negative_prompt="x", **CALL)
    with pytest.raises(ValueError, match="1 to 50 steps"):
        pipe(PROMPT, **CALL | {"num_inference_steps": 51})


def test_mismatched_negative_prompts_are_refused():
    pipe = tiny_pipeline(few_step=False)
    with pytest.raises(ValueError, match="negative_prompt has 2 entries for 1 prompts"):
        pipe(PROMPT, negative_prompt=["a", "b"], **CALL)
    embeds = torch.zeros(2, 8, 16)
    with pytest.raises(ValueError, match="both given"):
        pipe(PROMPT, negative_prompt="a", negative_prompt_embeds=embeds, **CALL)
    with pytest.raises(ValueError, match="expected that of prompt_embeds"):
        pipe(prompt_embeds=torch.zeros(1, 8, 16), negative_prompt_embeds=embeds, **CALL)


# ----------------------------------------------------------------------------------------------- decoding


class SmallMemoryVAE(AutoencoderKL):
    """Runs out of memory above ``limit`` frames."""

    limit = 2
    error: type[Exception] | Exception = torch.OutOfMemoryError
    sizes: list[int]

    def decode(self, z, return_dict=True, generator=None):
        self.sizes.append(len(z))
        if len(z) > self.limit:
            raise self.error
        return super().decode(z, return_dict=return_dict)


def small_memory_pipeline(limit: int) -> HummingbirdPipeline:
    pipe = tiny_pipeline()
    vae = SmallMemoryVAE.from_config(pipe.vae.config)
    vae.load_state_dict(pipe.vae.state_dict())
    vae.limit, vae.sizes = limit, []
    pipe.vae = vae.eval()
    return pipe


CPU_ERROR = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes.")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, CPU_ERROR], ids=["device", "cpu"])
def test_decoding_halves_its_chunks(error):
    options = CALL | {"num_frames": 7}
    expected = tiny_pipeline()(PROMPT, generator=seeded(0), **options).frames
    pipe = small_memory_pipeline(limit=2)
    pipe.vae.error = error
    frames = pipe(PROMPT, generator=seeded(0), decode_chunk_size=7, **options).frames
    assert pipe.vae.sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(frames, expected, atol=1e-5)


def test_chunks_that_fit_are_left_alone():
    pipe = small_memory_pipeline(limit=3)
    pipe(PROMPT, decode_chunk_size=3, **CALL | {"num_frames": 7})
    assert pipe.vae.sizes == [3, 3, 1]


def test_latents_survive_a_failed_decode():
    pipe = small_memory_pipeline(limit=0)
    expected = pipe(PROMPT, generator=seeded(0), **CALL | {"output_type": "latent"}).frames
    with pytest.raises(FrameDecodeError, match="one frame of 16x24") as error:
        pipe(PROMPT, generator=seeded(0), **CALL)
    assert torch.equal(error.value.latents, expected)
    pipe.vae.limit = 9
    assert pipe.decode_latents(error.value.latents).shape == (1, 3, 3, 16, 24)


def test_other_errors_are_not_swallowed():
    pipe = small_memory_pipeline(limit=0)
    pipe.vae.error = RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        pipe(PROMPT, **CALL)
    assert pipe.vae.sizes == [3]


def test_scale_and_shift_of_the_vae_are_honoured():
    pipe = tiny_pipeline()
    latents = torch.randn(1, 4, 2, 8, 12, generator=seeded(0))
    pipe.vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    with torch.no_grad():
        frame = pipe.vae.decode(latents[:, :, 1] / 0.5 + 0.25).sample
        torch.testing.assert_close(pipe.decode_latents(latents)[:, :, 1], frame, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ model defaults


def test_fallback_defaults_are_the_contracts():
    assert tiny_pipeline().default_call == {
        "num_frames": 16,
        "height": 320,
        "width": 512,
        "fps": 8,
        "num_inference_steps": 4,
        "guidance_scale": 7.5,
        "eta": 0.0,
    }
    names = list(inspect.signature(HummingbirdPipeline.__call__).parameters)
    assert names[1:8] == [
        "prompt",
        "num_frames",
        "height",
        "width",
        "fps",
        "num_inference_steps",
        "guidance_scale",
    ]


def test_models_own_defaults(tmp_path):
    own = {"num_frames": 2, "height": 8, "width": 12, "num_inference_steps": 3, "guidance_scale": 2.0}
    tiny_pipeline(default_call=own).save_pretrained(tmp_path)
    pipe = HummingbirdPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.default_call == {"fps": 8, "eta": 0.0, **own}
    assert pipe(PROMPT, output_type="np").frames.shape == (1, 2, 8, 12, 3)
    assert (pipe.num_timesteps, pipe.guidance_scale) == (3, 2.0)
    assert pipe(PROMPT, num_frames=1, output_type="np").frames.shape[1] == 1
    with pytest.raises(ValueError, match="default_call has size"):
        HummingbirdPipeline(**tiny_components(), default_call={"size": 1})


def test_tokenizer_is_a_plain_one():
    assert tiny_tokenizer()("a red circle").input_ids == [1, 4, 5, 7, 2]
