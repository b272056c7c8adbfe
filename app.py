"""The demo page: a prompt in, videos out. Everything is in ``hummingbird.app``; this opens it.

python app.py [--model nano] [--host 127.0.0.1] [--port 7860] [--share]
"""

from __future__ import annotations

import argparse
import atexit
import functools
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio as gr

    from hummingbird.serving import Engine


def build_demo(model: str | Engine = "nano") -> gr.Blocks:
    """Lay out the page; its ``launch()`` serves it. Prompts are rewritten where the environment says by whom.

    Args:
        model: an engine, which the caller closes; or a model for one that lives, with its videos, as long as
            this process.

    Raises:
        ValueError, OSError: the model cannot be loaded, or the environment names no usable chat server.
    """
    from hummingbird.app.page import build_page, page_options
    from hummingbird.app.rewriting import Rewriter
    from hummingbird.serving import Engine, JobStore

    rewriter = Rewriter.from_environment()
    if isinstance(model, str):
        folder = tempfile.mkdtemp(prefix="hummingbird-page-")
        engine = Engine([model], JobStore(folder))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        atexit.register(engine.close, timeout_s=10)  # the last one registered is called first
        engine.load_model(engine.default_model)
    else:
        engine = model
    demo = build_page(engine, rewriter)
    demo.launch = functools.partial(demo.launch, **page_options(engine))
    return demo


def build_parser() -> argparse.ArgumentParser:
    """Flags of ``python app.py``."""
    parser = argparse.ArgumentParser(prog="app.py", description="Open the demo page.", allow_abbrev=False)
    parser.add_argument(
        "--model",
        action="append",
        help="nano (embedded), a diffusers folder or a hub id; repeat to switch and compare (default: nano)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument(
        "--share", action="store_true", help="also open a public link through Gradio's servers"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("outputs/page"),
        help="where videos are kept (default: outputs/page)",
    )
    parser.add_argument(
        "--rewriter-url", help="OpenAI-compatible server that may rewrite prompts, with its /v1"
    )
    parser.add_argument("--rewriter-model", help="what that server calls its model")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C."""
    args = build_parser().parse_args(argv)
    from hummingbird.app.page import build_page, page_options
    from hummingbird.app.rewriting import Rewriter
    from hummingbird.serving import Engine, JobStore

    try:
        rewriter = Rewriter.from_environment(base_url=args.rewriter_url, model=args.rewriter_model)
        with Engine(args.model or ["nano"], JobStore(args.folder)) as engine:
            engine.load_model(engine.default_model)
            demo = build_page(engine, rewriter)
            demo.launch(
                server_name=args.host, server_port=args.port, share=args.share, **page_options(engine)
            )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
