"""The HTTP API: OpenAI's video endpoints over an engine, and what an operator needs.

Reference: https://platform.openai.com/docs/api-reference/videos
"""

import json
import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Literal

import pydantic
from fastapi import Depends, FastAPI, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hummingbird import __version__
from hummingbird.serving.engine import Engine, QueueFull, StorageFull, UnknownModel
from hummingbird.serving.http import ApiKeys, Guard, Timeouts, client_address, error_body
from hummingbird.serving.jobs import Job, StoreError, is_job_id
from hummingbird.serving.metrics import Metrics
from hummingbird.serving.requests import Limits, RequestError, VideoRequest

__all__ = ["CreateVideo", "Video", "build_api"]

_MAX_FORM_FIELDS = 32
_LINKS = {
    name: {"operationId": name, "parameters": {"video_id": "$response.body#/id"}}
    for name in ("get_video", "get_video_content", "cancel_video", "delete_video")
}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_STATUS = {
    "queued": "queued",
    "running": "in_progress",
    "done": "completed",
    "failed": "failed",
    "cancelled": "failed",  # OpenAI's clients know no other word for it
}


class CreateVideo(pydantic.BaseModel):
    """What a client asks for; all but the prompt is the model's own choice where it is left out."""

    model_config = pydantic.ConfigDict(extra="forbid")

    prompt: str = pydantic.Field(min_length=1, description="What to show.")
    model: str | None = pydantic.Field(None, description="One of GET /v1/models; the first where left out.")
    seconds: (
        Annotated[str, pydantic.Field(pattern=r"^[0-9]{1,4}(\.[0-9]{1,3})?$")]
        | Annotated[float, pydantic.Field(gt=0, le=9999, allow_inf_nan=False)]
        | None
    ) = pydantic.Field(None, description="Length; rounded to whole frames, at least one.")
    size: str | None = pydantic.Field(
        None, pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$", description="WIDTHxHEIGHT in pixels."
    )
    num_frames: int | None = pydantic.Field(None, ge=1, le=2**20, description="Instead of seconds.")
    fps: float | None = pydantic.Field(None, gt=0, le=1000, allow_inf_nan=False)
    num_inference_steps: int | None = pydantic.Field(None, ge=1, le=2**20, description="Denoising steps.")
    guidance_scale: float | None = pydantic.Field(None, ge=-1000, le=1000, allow_inf_nan=False)
    seed: int | None = pydantic.Field(None, ge=0, lt=2**63, description="Drawn where left out.")
    negative_prompt: str | None = pydantic.Field(None, description="What to keep out.")


class VideoError(pydantic.BaseModel):
    """Why there is no video."""

    code: str
    message: str


class Video(pydantic.BaseModel):
    """A job: OpenAI's fields, then our own."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: Annotated[int, pydantic.Field(ge=0, le=100)]
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str
    seconds: str
    size: str
    error: VideoError | None
    remixed_from_video_id: None = None
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    seed: int
    negative_prompt: str | None
    queue_position: int | None = pydantic.Field(description="Videos that come before it while it waits.")


class VideoList(pydantic.BaseModel):
    """One page of a client's own videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(pydantic.BaseModel):
    """What is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Model(pydantic.BaseModel):
    """A model that may be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hummingbird"


class ModelList(pydantic.BaseModel):
    """All of them; the first is the default."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(pydantic.BaseModel):
    """Whether videos are made."""

    status: Literal["ok", "failing"]
    reason: str | None
    model: str | None


class _ErrorDetail(pydantic.BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(pydantic.BaseModel):
    """Every answer with a status from 400 on."""

    error: _ErrorDetail


class ApiError(Exception):
    """An answer other than success."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after_s = status, code, param, retry_after_s


def build_api(
    engine: Engine,
    api_keys: ApiKeys | None = None,
    *,
    allowed_hosts: frozenset[str] | None = None,
    timeouts: Timeouts | None = None,
) -> FastAPI:
    """Lay out the API of an engine.

    Args:
        engine: makes the videos; whoever made it closes it.
        api_keys: without them everybody who reaches the server may use it.
        allowed_hosts: as for ``Guard``.
        timeouts: for whoever sends too slowly.

    Raises:
        ImportError: ``prometheus-client`` is not installed.
    """
    api = FastAPI(
        title="Hummingbird",
        version=__version__,
        description="Text to video, as OpenAI's clients ask for it.",
        docs_url=None,  # its scripts would come from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    metrics = Metrics(engine)
    _add_errors(api)
    _add_video_routes(api, engine, api_keys)
    _add_operator_routes(api, engine, api_keys, metrics)
    api.add_middleware(
        Guard,  # type: ignore[arg-type]
        allowed_hosts=allowed_hosts,
        body_timeout_s=(timeouts or Timeouts()).body_s,
    )
    _count_requests(api, metrics)  # outermost, so that what the guard refuses counts too
    return api


def _add_video_routes(api: FastAPI, engine: Engine, api_keys: ApiKeys | None) -> None:
    identify = _identify(api_keys)
    Client = Annotated[str, Depends(identify)]
    VideoId = Annotated[str, Path(description="video_ and 32 hex digits")]
    refused: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}

    def own(video_id: str, client: str) -> Job:
        job = engine.get(video_id) if is_job_id(video_id) else None
        # Without keys the id itself, which nobody can guess, is the right to the video.
        if job is None or (api_keys is not None and job.client != client):
            raise ApiError(
                404, "video_not_found", f"no video {video_id[:80]!r}; it may have expired", "video_id"
            )
        return job

    @api.post(
        "/v1/videos",
        response_model=Video,
        responses={**refused, 200: {"links": _LINKS}},
        openapi_extra=_create_body(engine.limits),
        operation_id="create_video",
    )
    async def create(
        request: Request,
        client: Client,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1,
                max_length=200,
                description="Sent again, it gives the job that is there already.",
            ),
        ] = None,
    ) -> Video:
        """Accept a job: it will be made, whatever happens to this process."""
        wanted = _to_request(engine, await _read_fields(request))
        return _show(engine, await run_in_threadpool(engine.submit, wanted, client, idempotency_key))

    @api.get("/v1/videos", response_model=VideoList, responses=refused, operation_id="list_videos")
    def list_videos(
        client: Client,
        after: Annotated[str | None, Query(description="Id of the last video of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """The client's own jobs: those of its key, or without keys those from its address."""
        if after is not None:
            own(after, client)
        jobs = list(engine.list(client, after=after, limit=limit + 1, descending=order == "desc"))
        positions = engine.positions()
        page = [_show(engine, job, positions) for job in jobs[:limit]]
        return VideoList(
            data=page,
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=len(jobs) > limit,
        )

    @api.get("/v1/videos/{video_id}", response_model=Video, responses=refused, operation_id="get_video")
    def get_video(video_id: VideoId, client: Client) -> Video:
        """How far a job is, and what became of it."""
        return _show(engine, own(video_id, client))

    @api.get(
        "/v1/videos/{video_id}/content",
        response_class=FileResponse,
        responses={
            **refused,
            200: {"content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}},
            206: {"content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}},
        },
        operation_id="get_video_content",
    )
    def content(video_id: VideoId, client: Client, variant: Literal["video"] = "video") -> FileResponse:
        """The mp4, whole or by ranges."""
        job = own(video_id, client)
        if job.state != "done":
            raise ApiError(
                404, "video_not_ready", f"the video is {_STATUS[job.state]}; see its status", "video_id"
            )
        path = engine.video_path(job.id)
        if path is None:
            raise ApiError(
                404, "video_expired", "the video has expired; its settings are still there", "video_id"
            )
        return FileResponse(path, media_type="video/mp4", filename=path.name)

    @api.post(
        "/v1/videos/{video_id}/cancel", response_model=Video, responses=refused, operation_id="cancel_video"
    )
    def cancel(video_id: VideoId, client: Client) -> Video:
        """Stop a job, at the latest after the denoising step that it is in; its record stays."""
        engine.cancel(own(video_id, client).id)
        return _show(engine, own(video_id, client))

    @api.delete(
        "/v1/videos/{video_id}", response_model=DeletedVideo, responses=refused, operation_id="delete_video"
    )
    def delete(video_id: VideoId, client: Client) -> DeletedVideo:
        """Stop a job, delete its video and forget it."""
        job = own(video_id, client)
        engine.remove(job.id)
        return DeletedVideo(id=job.id)

    def model(name: str) -> Model:
        return Model(id=name, created=int(engine.started_s))

    @api.get("/v1/models", response_model=ModelList, responses=refused, operation_id="list_models")
    def list_models(client: Client) -> ModelList:
        """What may be asked for."""
        return ModelList(data=[model(name) for name in engine.models])

    @api.get("/v1/models/{name:path}", response_model=Model, responses=refused, operation_id="get_model")
    def get_model(name: str, client: Client) -> Model:
        """One of them."""
        if name not in engine.models:
            raise ApiError(404, "model_not_found", f"no model {name[:80]!r}; see /v1/models", "model")
        return model(name)

    # Or the page, which is mounted behind, would answer.
    @api.api_route("/v1/{path:path}", methods=list(_METHODS), include_in_schema=False)
    def nothing(request: Request) -> None:
        near = [route for route in api.routes if route.matches(request.scope)[0] is Match.PARTIAL]
        allowed = sorted({method for route in near for method in getattr(route, "methods", ())})
        if allowed:
            raise HTTPException(405, headers={"Allow": ", ".join(allowed)})
        raise ApiError(404, "unknown_url", "no such endpoint; see /openapi.json")


def _add_operator_routes(api: FastAPI, engine: Engine, api_keys: ApiKeys | None, metrics: Metrics) -> None:
    @api.get("/healthz", response_model=Health, responses={503: {"model": Health}}, operation_id="health")
    def health() -> JSONResponse:
        """200 while videos are made, 503 otherwise; needs no key and names nothing that is secret."""
        fault, info = engine.fault, engine.model_info
        body = Health(status="failing" if fault else "ok", reason=fault, model=info.name if info else None)
        return JSONResponse(body.model_dump(), HTTPStatus.SERVICE_UNAVAILABLE if fault else HTTPStatus.OK)

    @api.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {}}},
            "4XX": {"model": ErrorBody},
            "5XX": {"model": ErrorBody},
        },
        dependencies=[Depends(_identify(api_keys))],
        operation_id="metrics",
    )
    def show_metrics() -> Response:
        """Figures for Prometheus."""
        text, content_type = metrics.text()
        return Response(text, media_type=content_type)


def _identify(api_keys: ApiKeys | None) -> Callable[..., str]:
    """A dependency that gives the client's name, or refuses it."""
    if api_keys is None:

        def by_address(request: Request) -> str:
            return client_address(request.scope)

        return by_address
    bearer = HTTPBearer(auto_error=False, description="Authorization: Bearer KEY")

    def by_key(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> str:
        name = api_keys.find(credentials.credentials) if credentials else None
        if name is None:
            raise ApiError(401, "invalid_api_key", "no or a wrong API key: send Authorization: Bearer KEY")
        return f"key:{name}"

    return by_key


# --- requests ---------------------------------------------------------------------------------------------


def _create_body(limits: Limits) -> dict[str, Any]:
    """The body of POST /v1/videos for the schema; FastAPI declares one kind of body alone."""
    schema = CreateVideo.model_json_schema()
    bounds = {"num_frames": limits.max_frames, "num_inference_steps": limits.max_steps}
    for name, most in bounds.items():
        schema["properties"][name]["anyOf"][0]["maximum"] = most
    for name in ("prompt", "negative_prompt"):
        where = schema["properties"][name]
        where.get("anyOf", [where])[0]["maxLength"] = limits.max_prompt_chars
    kinds = ("application/json", "multipart/form-data", "application/x-www-form-urlencoded")
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind in kinds}}}


async def _read_fields(request: Request) -> CreateVideo:
    """The fields of a body, JSON or a form (OpenAI's clients send a form).

    Raises:
        ApiError: what cannot be read, or is no request.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json"
    fields: Any
    if is_json:
        fields = _parse_json(await request.body())
    elif kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        fields = await _parse_form(request)
    else:
        raise ApiError(
            415,
            "unsupported_media_type",
            f"Content-Type: got {kind[:80]!r}, expected application/json or multipart/form-data",
        )
    if isinstance(fields, dict) and "input_reference" in fields:
        raise _no_reference()
    try:
        return CreateVideo.model_validate(fields, strict=is_json)
    except pydantic.ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_context=False)) from error


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from error
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON ({error})") from error


async def _parse_form(request: Request) -> dict[str, str]:
    body = await request.body()
    try:
        form = await request.form(max_files=1, max_fields=_MAX_FORM_FIELDS)
    except HTTPException as error:
        raise ApiError(400, "invalid_form", f"the form cannot be read ({error.detail})") from error
    names = [name for name, _ in form.multi_items()]
    values = dict(form.multi_items())
    await form.close()
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    if "input_reference" in values:
        raise _no_reference()
    for name in values.keys() - texts.keys():
        raise ApiError(400, "unexpected_file", f"{name[:80]!r}: got a file, expected text", name[:80])
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ApiError(400, "repeated_parameter", f"{repeated[:80]!r} is given twice", repeated[:80])
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from error
    # Percent signs hide bytes from that look; what spells nothing shows as U+FFFD.
    bad = next((name for name, value in texts.items() if "\ufffd" in f"{name}{value}"), None)
    if bad is not None:
        raise ApiError(400, "invalid_encoding", f"{bad[:80]!r} is not UTF-8; send UTF-8", bad[:80])
    return texts


def _no_reference() -> ApiError:
    return ApiError(
        400, "unsupported_parameter", "videos are made from text alone; leave it out", "input_reference"
    )


def _not_utf8(error: UnicodeDecodeError) -> ApiError:
    return ApiError(400, "invalid_encoding", f"the body is not UTF-8 (byte {error.start}); send UTF-8")


def _invalid(errors: Any) -> ApiError:
    """The first of pydantic's complaints as an answer."""
    first = errors[0]
    names = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    name = names[0][:80] if names else None
    message = first["msg"][:1].lower() + first["msg"][1:]
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    return ApiError(400, code, f"{name}: {message}" if name else message, name)


def _to_request(engine: Engine, fields: CreateVideo) -> VideoRequest:
    """Fill in what was left out.

    Raises:
        RequestError: what cannot be made.
    """
    given = fields.model_dump(exclude={"prompt", "model", "seconds", "size"}, exclude_none=True)
    if fields.size is not None:
        given["width"], given["height"] = map(int, fields.size.split("x"))
    if fields.seconds is not None:
        if fields.num_frames is not None:
            raise RequestError("seconds and num_frames were both given: give one of them", "seconds")
        fps = fields.fps or float(engine.facts(fields.model).default_call["fps"])
        given["num_frames"] = max(1, math.floor(float(fields.seconds) * fps + 0.5))
    return engine.complete(fields.prompt, fields.model, **given)


def _show(engine: Engine, job: Job, positions: Mapping[str, int] | None = None) -> Video:
    request = job.request
    share, position = (1.0 if job.state == "done" else 0.0), None
    if positions is not None and job.id in positions:
        position = positions[job.id]
    elif not job.is_final:
        progress = engine.progress(job.id)
        if progress is not None:
            # 100 only once the video can be fetched.
            share, position = min(0.99, progress.step / progress.num_steps), progress.position
    expires_s = None
    if job.size_bytes is not None and job.finished_s is not None:
        expires_s = job.finished_s + engine.limits.max_output_age_s
    return Video(
        id=job.id,
        model=request.model,
        status=_STATUS[job.state],  # type: ignore[arg-type]
        progress=int(share * 100),
        created_at=int(job.created_s),
        completed_at=None if job.finished_s is None else int(job.finished_s),
        expires_at=None if expires_s is None else int(expires_s),
        prompt=request.prompt,
        seconds=f"{request.duration_s:g}",
        size=f"{request.width}x{request.height}",
        error=VideoError(
            code="cancelled" if job.state == "cancelled" else "generation_failed", message=job.reason
        )
        if job.reason and job.state in ("failed", "cancelled")
        else None,
        num_frames=request.num_frames,
        fps=request.fps,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        seed=request.seed,
        negative_prompt=request.negative_prompt,
        queue_position=position,
    )


# --- errors and figures -----------------------------------------------------------------------------------


def _add_errors(api: FastAPI) -> None:
    """Every error of ours, of FastAPI's and of the engine's becomes one body."""

    def answer(error: ApiError, headers: Any = None) -> Response:
        extra = dict(headers or {})
        if error.retry_after_s is not None:
            extra["Retry-After"] = str(error.retry_after_s)
        if error.status == HTTPStatus.UNAUTHORIZED:
            extra["WWW-Authenticate"] = "Bearer"
        body = error_body(str(error), error.code, status=error.status, param=error.param)
        return JSONResponse(body, error.status, extra)

    def of_request(error: RequestError) -> ApiError:
        if isinstance(error, UnknownModel):
            return ApiError(404, "model_not_found", str(error), "model")
        return ApiError(400, "invalid_value", str(error), error.field)

    def of_http(error: HTTPException) -> ApiError:
        code = HTTPStatus(error.status_code).name.lower()
        return ApiError(error.status_code, code, str(error.detail))

    translations: dict[type[Exception], Callable[[Any], ApiError]] = {
        ApiError: lambda error: error,
        RequestError: of_request,
        QueueFull: lambda error: ApiError(429, "queue_full", str(error), None, error.retry_after_s),
        StorageFull: lambda error: ApiError(507, "storage_full", str(error)),
        StoreError: lambda error: ApiError(
            503, "store_unavailable", "the server cannot write down jobs now; try again later", None, 30
        ),
        RequestValidationError: lambda error: _invalid(error.errors()),
        HTTPException: of_http,
    }
    for kind, translate in translations.items():

        def handle(request: Request, error: Exception, translate: Any = translate) -> Response:
            return answer(translate(error), getattr(error, "headers", None))

        api.add_exception_handler(kind, handle)


def _count_requests(api: FastAPI, metrics: Metrics) -> None:
    class CountRequests:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return

            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    route = getattr(scope.get("route"), "path", "other")
                    method = scope["method"] if scope["method"] in _METHODS else "other"
                    metrics.note_request(method, route, message["status"])
                await send(message)

            await self.app(scope, receive, note)

    api.add_middleware(CountRequests)
