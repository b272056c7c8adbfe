"""A plain Gradio page: a prompt in, a video out. No sampling code lives here.

python app.py [--model nano] [--host 127.0.0.1] [--port 7860] [--share]
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hummingbird import runtime, video_io

if TYPE_CHECKING:
    import gradio as gr

    from hummingbird.pipelines import HummingbirdPipeline

EXAMPLES = (
    "a red circle moving right on a black background",
    "a yellow star bouncing on a navy background",
    "a cyan square growing on a brown background",
    "a pink triangle circling around on a teal background",
)
MAX_STEPS = 100


def make_video(
    pipe: HummingbirdPipeline,
    folder: tempfile.TemporaryDirectory[str],
    prompt: str,
    seed: float,
    steps: float,
    guidance_scale: float,
) -> str:
    """Answer one press of the button: the path of an mp4 in ``folder``."""
    import gradio as gr
    import torch

    if not prompt.strip():
        raise gr.Error("The prompt is empty: describe the video.")
    out = pipe(
        prompt,
        num_inference_steps=int(steps),
        guidance_scale=float(guidance_scale),
        generator=torch.Generator("cpu").manual_seed(int(seed)),
        output_type="np",
    )
    with tempfile.NamedTemporaryFile(dir=folder.name, suffix=".mp4", delete=False) as file:
        path = Path(file.name)
    video_io.write_video(video_io.to_uint8(out.frames[0]), path, fps=float(pipe.default_call["fps"]))
    return str(path)


def build_demo(model: str | HummingbirdPipeline = "nano") -> gr.Blocks:
    """Lay out the page around one model.

    Args:
        model: a loaded pipeline, or a name that ``hummingbird.runtime.load_pipeline`` takes.

    Raises:
        ValueError, OSError: the model cannot be loaded.
    """
    import gradio as gr

    pipe = runtime.load_pipeline(model) if isinstance(model, str) else model
    defaults = pipe.default_call
    # Goes when the page goes; Gradio serves copies of its own.
    folder = tempfile.TemporaryDirectory(prefix="hummingbird-page-")
    with gr.Blocks(title="Hummingbird", analytics_enabled=False) as demo:
        gr.Markdown(
            "# Hummingbird\nText to video. The embedded model knows one shape moving on a plain background."
        )
        with gr.Row():
            with gr.Column():
                prompt = gr.Textbox(label="Prompt", value=EXAMPLES[0], lines=2)
                seed = gr.Number(label="Seed", value=0, precision=0, minimum=0)
                steps = gr.Slider(
                    1, MAX_STEPS, value=int(defaults["num_inference_steps"]), step=1, label="Steps"
                )
                guidance_scale = gr.Slider(
                    1.0, 15.0, value=float(defaults["guidance_scale"]), step=0.5, label="Guidance scale"
                )
                button = gr.Button("Generate", variant="primary")
                gr.Examples([[text] for text in EXAMPLES], inputs=[prompt])
            video = gr.Video(label="Video", autoplay=True, loop=True, interactive=False)
        button.click(
            functools.partial(make_video, pipe, folder),
            inputs=[prompt, seed, steps, guidance_scale],
            outputs=video,
            api_name="generate",
            concurrency_limit=1,
        )
    return demo


def theme() -> gr.themes.Base:
    """Only fonts that the system has: web fonts would be asked for from a server elsewhere."""
    import gradio as gr

    return gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build_parser() -> argparse.ArgumentParser:
    """Flags of ``python app.py``."""
    parser = argparse.ArgumentParser(prog="app.py", description="Open the demo page.", allow_abbrev=False)
    parser.add_argument("--model", default="nano", help="nano (embedded), a diffusers folder or a hub id")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument(
        "--share", action="store_true", help="also open a public link through Gradio's servers"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        demo = build_demo(args.model)
        demo.queue().launch(server_name=args.host, server_port=args.port, share=args.share, theme=theme())
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
