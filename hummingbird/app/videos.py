"""Jobs of the engine as the page shows them, and the files behind them."""

from __future__ import annotations

import base64
import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hummingbird.app import moving_shapes
from hummingbird.app.cards import Judgement, VideoView
from hummingbird.app.snippets import Recipe

if TYPE_CHECKING:
    import numpy as np
    from starlette.requests import Request
    from starlette.responses import Response

    from hummingbird.serving import Engine, Job, VideoRequest

__all__ = ["Videos"]

logger = logging.getLogger(__name__)

MAX_LISTED = 60
"""Newest videos of one browser that are shown."""
_FOLDER = "videos"


class Videos:
    """Looks up what became of a browser's requests; makes nothing itself.

    Args:
        engine: the queue, the same one as behind the HTTP interface.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._speaks_world = {
            name: moving_shapes.speaks_world(source) for name, source in engine.models.items()
        }

    def speaks_world(self, model: str) -> bool:
        """Whether a model knows the moving-shapes world alone; False for one that is not there."""
        return self._speaks_world.get(model, False)

    def recipe(self, request: VideoRequest) -> Recipe:
        """All that the video depends on, with the model called as this machine finds it."""
        engine = self._engine
        return Recipe(
            model=engine.models.get(request.model, request.model),
            prompt=request.prompt,
            seed=request.seed,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            num_frames=request.num_frames,
            height=request.height,
            width=request.width,
            fps=request.fps,
            negative_prompt=request.negative_prompt,
            device=engine.device,
            dtype=engine.dtype,
        )

    def owned(self, job_id: Any, client: str) -> Job | None:
        """The job of that id if this browser asked for it; ids come from the browser and may be anything."""
        job = self._engine.get(job_id) if isinstance(job_id, str) else None
        return job if job is not None and job.client == client else None

    def view(self, job_id: Any, client: str, label: str = "") -> VideoView | None:
        """One video; None where there is none (any more) or another browser asked for it."""
        job = self.owned(job_id, client)
        return None if job is None else self._view(job, label)

    def _view(self, job: Job, label: str = "") -> VideoView:
        progress = self._engine.progress(job.id)
        # The job may have ended between the two questions.
        job = self._engine.get(job.id) or job
        common: dict[str, Any] = {
            "id": job.id,
            "model": job.request.model,
            "recipe": self.recipe(job.request),
            "label": label,
            "num_steps": job.request.num_inference_steps,
            "url": f"{_FOLDER}/{job.id}",
        }
        if not job.is_final:
            running = progress is not None and progress.state == "running"
            return VideoView(
                status="running" if running else "queued",
                step=progress.step if progress else 0,
                ahead=progress.position if progress else None,
                seconds=progress.seconds if running and progress else None,
                preview=_data_url(progress.preview) if progress and progress.preview is not None else None,
                **common,
            )
        if job.state != "done":
            return VideoView(
                status="failed" if job.state == "failed" else "cancelled", error=job.reason or "", **common
            )
        path = self._engine.video_path(job.id)
        return VideoView(
            status="gone" if path is None else "done",
            seconds=job.seconds,
            judgement=self._judge(job.request, path),
            **common,
        )

    def _judge(self, request: VideoRequest, path: Path | None) -> Judgement | None:
        if path is None or not self.speaks_world(request.model):
            return None
        try:
            verdict = moving_shapes.seen_in(path)
        except (OSError, ValueError) as error:
            return Judgement((), str(error))
        return Judgement(tuple(moving_shapes.checks(request.prompt, verdict)), verdict.reason)

    def history(self, client: str) -> list[VideoView]:
        """What this browser asked for and what has ended, newest first; what it stopped is left out."""
        jobs = self._engine.list(client, states=("done", "failed"), limit=MAX_LISTED)
        return [self._view(job) for job in jobs]

    # --- files ----------------------------------------------------------------------------------------------

    def routes(self) -> list[Any]:
        """Where the page fetches finished videos; the id of a job is random and known to its browser."""
        from starlette.routing import Route

        return [Route(f"/{_FOLDER}/{{name}}", self._send, methods=["GET"])]

    def _send(self, request: Request) -> Response:
        from starlette.responses import FileResponse, PlainTextResponse, Response

        job_id, _, suffix = request.path_params["name"].rpartition(".")
        path = self._engine.video_path(job_id) if suffix in ("mp4", "gif") else None
        if path is None:
            return PlainTextResponse("There is no such video (any more).", status_code=404)
        headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        if suffix == "mp4":
            return FileResponse(path, media_type="video/mp4", headers=headers)
        return Response(_gif_of(path), media_type="image/gif", headers=headers)


def _gif_of(path: Path) -> bytes:
    """A GIF of a video file. Few are asked for, so none is kept."""
    from hummingbird.video_io import read_video, write_video

    video = read_video(path)
    with tempfile.TemporaryDirectory(prefix="hummingbird-gif-") as folder:
        return write_video(video.frames, Path(folder) / "video.gif", fps=video.fps).read_bytes()


def _data_url(image: np.ndarray) -> str:
    """A picture as an address that needs no request of its own.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def unfinished(views: Sequence[VideoView | None]) -> bool:
    """Whether any of them will still change."""
    return any(view is not None and view.status in ("queued", "running") for view in views)
