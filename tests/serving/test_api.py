"""The API as its users see it: OpenAI's own client, browsers, operators, and people who try things."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from hummingbird import video_io
from hummingbird.serving import Engine, Limits
from hummingbird.serving.http import ApiKeys, loopback_hosts
from hummingbird.serving.server import find_api_keys, listen
from tests.serving.conftest import KEYS, PROMPT, SMALL, Serving, small_request, wait_for, wait_until

pytestmark = [
    pytest.mark.usefixtures("no_jobs"),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
EXTRA = {"num_inference_steps": 1, "num_frames": 2}


@pytest.fixture
def http(serving: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=serving.url, timeout=60) as client:
        yield client


def openai_client(serving: Serving, key: str = "unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{serving.url}/v1", api_key=key, max_retries=0)


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    return error


# --- OpenAI's client --------------------------------------------------------------------------------------


def test_openais_client_makes_lists_fetches_and_deletes(serving: Serving, tmp_path: Path) -> None:
    client = openai_client(serving)
    assert [model.id for model in client.models.list()] == ["nano"]
    assert client.models.retrieve("nano").owned_by == "hummingbird"
    size: Any = "32x16"
    video = client.videos.create(prompt=PROMPT, model="nano", size=size, extra_body=EXTRA)
    assert (video.status, video.object, video.prompt, video.size) == ("queued", "video", PROMPT, "32x16")
    wait_until(lambda: client.videos.retrieve(video.id).status == "completed")
    done = client.videos.retrieve(video.id)
    assert (done.progress, done.error, done.seconds) == (100, None, "0.25")
    assert done.completed_at is not None
    assert done.expires_at is not None
    assert done.created_at <= done.completed_at < done.expires_at
    client.videos.download_content(video.id).write_to_file(tmp_path / "video.mp4")
    clip = video_io.read_video(tmp_path / "video.mp4")
    assert (clip.frames.shape, clip.fps) == ((2, 16, 32, 3), 8.0)
    others = [client.videos.create(prompt=PROMPT, size=size, extra_body=EXTRA).id for _ in range(4)]
    listed = [entry.id for entry in client.videos.list(limit=2)]  # pages by itself
    assert listed == [*others[::-1], video.id]
    assert [entry.id for entry in client.videos.list(order="asc", after=video.id)] == others
    gone = client.videos.delete(video.id)
    assert (gone.id, gone.deleted) == (video.id, True)
    with pytest.raises(openai.NotFoundError, match="no video"):
        client.videos.retrieve(video.id)


def test_openais_client_waits_with_its_own_poll(serving: Serving) -> None:
    client = openai_client(serving)
    size: Any = "16x16"
    seconds: Any = "0.25"
    video = client.videos.create_and_poll(
        prompt=PROMPT, size=size, seconds=seconds, poll_interval_ms=20, extra_body={"num_inference_steps": 1}
    )
    assert video.status == "completed"
    assert client.videos.retrieve(video.id).to_dict()["num_frames"] == 2


def test_openais_client_reads_the_errors(serving: Serving) -> None:
    client = openai_client(serving)
    size: Any = "17x16"
    with pytest.raises(openai.BadRequestError, match="expected multiples of 16") as caught:
        client.videos.create(prompt=PROMPT, size=size, extra_body=EXTRA)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "width")
    with pytest.raises(openai.NotFoundError, match="expected one of nano"):
        client.videos.create(prompt=PROMPT, model="sora-2")
    with pytest.raises(openai.BadRequestError, match="made from text alone"):
        client.videos.create(prompt=PROMPT, input_reference=b"\xff\xd8\xff not a picture")


# --- requests ---------------------------------------------------------------------------------------------


def test_every_kind_of_body_means_the_same(http: httpx.Client, serving: Serving) -> None:
    fields = {
        "prompt": "Zürich ☂",
        "size": "16x32",
        "seconds": "0.5",
        "fps": 4,
        "num_inference_steps": 1,
        "guidance_scale": 2,
        "seed": 2**53 + 1,
        "negative_prompt": "rain",
    }
    texts = {name: str(value) for name, value in fields.items()}
    answers = [
        http.post("/v1/videos", json=fields),
        http.post("/v1/videos", data=texts),
        http.post("/v1/videos", files={name: (None, text) for name, text in texts.items()}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 3
    jobs = [serving.engine.get(answer.json()["id"]) for answer in answers]
    assert None not in jobs
    assert len({job.request for job in jobs if job is not None}) == 1
    shown = answers[0].json()
    assert (shown["num_frames"], shown["fps"], shown["seed"]) == (2, 4.0, 2**53 + 1)
    assert (shown["size"], shown["seconds"], shown["negative_prompt"]) == ("16x32", "0.5", "rain")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "a\x00b"}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "a", "size": "16×16"}, "size"),
        ({"prompt": "a", "size": "-16x16"}, "size"),
        ({"prompt": "a", "size": "99999x99999"}, None),
        ({"prompt": "a", "seconds": "nan"}, "seconds"),
        ({"prompt": "a", "seconds": 0}, "seconds"),
        ({"prompt": "a", "seconds": "1", "num_frames": 2}, "seconds"),
        ({"prompt": "a", "num_inference_steps": True}, "num_inference_steps"),
        ({"prompt": "a", "num_inference_steps": 1001}, "num_inference_steps"),
        ({"prompt": "a", "seed": 2**63}, "seed"),
        ({"prompt": "a", "loop": 1}, "loop"),
        ({"prompt": "a" * 201}, "prompt"),
    ],
)
def test_bad_fields_are_named(http: httpx.Client, fields: dict[str, Any], param: str | None) -> None:
    # json.dumps escapes what is not ASCII, so that halves of pairs arrive.
    answer = http.post("/v1/videos", content=json.dumps(fields), headers={"Content-Type": "application/json"})
    assert error_of(answer, 400)["param"] == param
    assert http.get("/v1/videos").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b'{"prompt": "\xff\xfe"}', "application/json", 400, "invalid_encoding"),
        (b"[1]", "application/json", 400, "invalid_value"),
        (b"prompt=%ff%fe", "application/x-www-form-urlencoded", 400, "invalid_encoding"),
        (b"prompt=a&prompt=b", "application/x-www-form-urlencoded", 400, "repeated_parameter"),
        (b"&".join(b"a%d=1" % i for i in range(99)), "application/x-www-form-urlencoded", 400, None),
        (b"nothing", "multipart/form-data; boundary=x", 400, None),
        (b"nothing", "multipart/form-data", 400, "invalid_form"),
        (b"<a/>", "application/xml", 415, "unsupported_media_type"),
        (b"", "", 415, "unsupported_media_type"),
    ],
)
def test_bad_bodies_are_answered(
    http: httpx.Client, body: bytes, kind: str, status: int, code: str | None
) -> None:
    answer = http.post("/v1/videos", content=body, headers={"Content-Type": kind} if kind else {})
    error = error_of(answer, status)
    assert code is None or error["code"] == code


def test_invalid_utf8_in_a_multipart_field_is_no_prompt(http: httpx.Client) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\xfe\xfd\r\n--x--\r\n'
    answer = http.post(
        "/v1/videos", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert error_of(answer, 400)["code"] == "invalid_encoding"


def test_sql_in_a_prompt_is_a_prompt(http: httpx.Client) -> None:
    evil = "'; DROP TABLE jobs; SELECT '"
    made = http.post("/v1/videos", json={"prompt": evil, "size": "16x16", **EXTRA}).json()
    shown = http.get(f"/v1/videos/{made['id']}").json()
    assert shown["prompt"] == evil
    assert [entry["id"] for entry in http.get("/v1/videos").json()["data"]] == [made["id"]]
    assert error_of(http.get("/v1/videos", params={"after": evil}), 404)["code"] == "video_not_found"


@pytest.mark.parametrize(
    "video_id",
    [
        "..%2f..%2f..%2fetc%2fpasswd",
        "..%5c..%5cwindows",
        "%2e%2e",
        "video_" + "0" * 32,
        "video_" + "0" * 32 + "%00.mp4",
        "video_" + "A" * 32,
        "jobs.sqlite3",
        "%ff%fe",
        "' OR 1=1 --",
        "x" * 5000,
    ],
)
def test_ids_are_no_paths(http: httpx.Client, video_id: str) -> None:
    for answer in (
        http.get(f"/v1/videos/{video_id}"),
        http.get(f"/v1/videos/{video_id}/content"),
        http.delete(f"/v1/videos/{video_id}"),
    ):
        error = error_of(answer, 404)
        assert error["code"] in ("video_not_found", "unknown_url")
        assert len(error["message"]) < 300
        assert "root:" not in answer.text


def test_a_full_queue_says_when_to_come_back(http: httpx.Client, serving: Serving) -> None:
    engine = serving.engine
    engine.submit(small_request(engine, num_inference_steps=1000), "busy")
    fields = {"prompt": PROMPT, "size": "16x16", **EXTRA}
    wait_until(lambda: engine.stats().running)
    answers = [http.post("/v1/videos", json=fields) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 6 + [429]
    assert error_of(answers[-1], 429)["code"] == "queue_full"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 600
    assert [answer.json()["queue_position"] for answer in answers[:3]] == [0, 1, 2]


def test_a_full_disk_and_a_broken_store_are_answered(
    http: httpx.Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"prompt": PROMPT, "size": "16x16", **EXTRA}
    with monkeypatch.context() as patch:
        patch.setattr(engine, "limits", Limits(min_free_bytes=2**62))
        assert error_of(http.post("/v1/videos", json=fields), 507)["code"] == "storage_full"
    engine.store._database.execute("PRAGMA query_only = ON")
    try:
        answer = http.post("/v1/videos", json=fields)
        assert error_of(answer, 503)["code"] == "store_unavailable"
        assert str(engine.store.folder) not in answer.text
        assert "retry-after" in answer.headers
    finally:
        engine.store._database.execute("PRAGMA query_only = OFF")
    assert http.post("/v1/videos", json=fields).status_code == 200


def test_sent_again_under_its_key_a_request_is_one_job(http: httpx.Client) -> None:
    fields = {"prompt": PROMPT, "size": "16x16", **EXTRA}
    ids = {
        http.post("/v1/videos", json=fields, headers={"Idempotency-Key": "again"}).json()["id"]
        for _ in range(3)
    }
    assert len(ids) == 1


# --- videos -----------------------------------------------------------------------------------------------


def test_content_comes_whole_or_by_ranges_and_only_when_there(http: httpx.Client, engine: Engine) -> None:
    job = wait_for(engine, engine.submit(small_request(engine), "address:127.0.0.1"))
    path = engine.video_path(job.id)
    assert path is not None
    url = f"/v1/videos/{job.id}/content"
    whole = http.get(url)
    assert (whole.status_code, whole.content) == (200, path.read_bytes())
    assert whole.headers["content-type"] == "video/mp4"
    part = http.get(url, headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert http.get(url, headers={"Range": "bytes=99999999-"}).status_code == 416
    assert error_of(http.get(url, params={"variant": "thumbnail"}), 400)["param"] == "variant"
    engine.store.expire(max_output_age_s=-1, max_output_bytes=1, max_record_age_s=1e9)
    assert error_of(http.get(url), 404)["code"] == "video_expired"
    long = engine.submit(small_request(engine, num_inference_steps=1000), "a")
    wait_until(lambda: engine.stats().running)
    assert error_of(http.get(f"/v1/videos/{long.id}/content"), 404)["code"] == "video_not_ready"
    shown = http.post(f"/v1/videos/{long.id}/cancel").json()
    assert shown["status"] in ("in_progress", "failed")
    wait_for(engine, long)
    shown = http.get(f"/v1/videos/{long.id}").json()
    assert (shown["status"], shown["error"]["code"]) == ("failed", "cancelled")


def test_keys_are_needed_where_there_are_keys(serving_with_keys: Serving) -> None:
    ada, bob = (openai_client(serving_with_keys, line.split(":")[1]) for line in KEYS)
    size: Any = "16x16"
    video = ada.videos.create(prompt=PROMPT, size=size, extra_body=EXTRA)
    assert [entry.id for entry in ada.videos.list()] == [video.id]
    assert list(bob.videos.list()) == []
    for call in (bob.videos.retrieve, bob.videos.delete, bob.videos.download_content):
        with pytest.raises(openai.NotFoundError):
            call(video.id)
    job = serving_with_keys.engine.get(video.id)
    assert job is not None
    assert job.client == "key:ada"
    with pytest.raises(openai.AuthenticationError, match="wrong API key"):
        openai_client(serving_with_keys, KEYS[0].split(":")[1][:-1]).models.list()
    for path in ("/v1/videos", "/v1/models", "/metrics", f"/v1/videos/{video.id}/content"):
        answer = httpx.get(serving_with_keys.url + path)
        assert error_of(answer, 401)["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"
    basic = httpx.get(serving_with_keys.url + "/v1/models", auth=("ada", "x"))
    odd = httpx.get(serving_with_keys.url + "/v1/models", headers={b"Authorization": b"Bearer \xff\xe9"})
    assert (basic.status_code, odd.status_code) == (401, 401)
    assert httpx.get(serving_with_keys.url + "/healthz").status_code == 200


# --- whoever runs it --------------------------------------------------------------------------------------


def test_health_and_metrics_tell_the_truth(http: httpx.Client, engine: Engine) -> None:
    health = http.get("/healthz")
    assert (health.status_code, health.json()) == (200, {"status": "ok", "reason": None, "model": "nano"})

    def figure(line: str) -> float:
        found = re.search(rf"^{re.escape(line)} ([0-9.e+]+)$", http.get("/metrics").text, flags=re.MULTILINE)
        return float(found[1]) if found else 0.0

    ended = 'hummingbird_jobs_ended_total{state="done"}'
    seen = 'hummingbird_http_requests_total{method="GET",route="/v1/videos/{video_id}",status="404"}'
    before, misses = figure(ended), figure(seen)
    wait_for(engine, engine.submit(small_request(engine), "a"))
    http.get("/v1/videos/video_" + "0" * 32)
    http.get("/v1/videos/video_" + "1" * 32)
    assert wait_until(lambda: figure(ended) - before) == 1
    assert figure(seen) - misses == 2, "one series for all ids"
    assert figure('hummingbird_job_seconds_count{state="done"}') >= 1
    assert figure("process_resident_memory_bytes") > 1e6
    assert figure("hummingbird_up") == 1
    assert 'hummingbird_model_info{name="nano"} 1.0' in http.get("/metrics").text


def test_a_failing_store_shows_in_health(
    http: httpx.Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_fault", "the job store cannot be written")
    answer = http.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (503, "failing")


def test_answers_carry_security_headers_and_no_cors(http: httpx.Client) -> None:
    for path in ("/v1/models", "/healthz", "/nothing", "/openapi.json"):
        headers = http.get(path, headers={"Origin": "https://evil.example"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert not [name for name in headers if name.startswith("access-control")]
        assert "server" not in headers
    assert "default-src 'none'" in http.get("/v1/models").headers["content-security-policy"]


def test_pages_of_other_sites_cannot_send_jobs(http: httpx.Client, serving: Serving) -> None:
    fields = {"prompt": PROMPT, "size": "16x16", **{name: str(value) for name, value in EXTRA.items()}}
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://[bad"):
        answer = http.post("/v1/videos", data=fields, headers={"Origin": origin})
        assert error_of(answer, 403)["code"] == "cross_origin"
    refused = 'hummingbird_http_requests_total{method="POST",route="other",status="403"}'
    assert refused in http.get("/metrics").text
    rebound = http.get("/v1/models", headers={"Host": "evil.example"})
    assert error_of(rebound, 400)["code"] == "unknown_host"
    own = http.post("/v1/videos", data=fields, headers={"Origin": serving.url})
    assert own.status_code == 200


def test_unknown_addresses_and_methods_are_answered_alike(http: httpx.Client) -> None:
    assert error_of(http.get("/v1/nothing"), 404)["code"] == "unknown_url"
    assert error_of(http.get("/nothing"), 404)["code"] == "not_found"
    wrong = http.put("/v1/videos")
    assert error_of(wrong, 405)["code"] == "method_not_allowed"
    assert wrong.headers["allow"] == "GET, POST"
    assert error_of(http.get("/v1/models/none"), 404)["code"] == "model_not_found"


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUMMINGBIRD_API_KEY", raising=False)
    assert find_api_keys(None) is None
    monkeypatch.setenv("HUMMINGBIRD_API_KEY", "0123456789abcdef")
    from_environment = find_api_keys(None)
    assert from_environment is not None
    assert from_environment.find("0123456789abcdef") == "key-1"
    file = tmp_path / "keys"
    file.write_text("# ours\n\nada:0123456789abcdef-a\n0123456789abcdef-b\n")
    keys = find_api_keys(file)
    assert keys is not None
    assert [keys.find(f"0123456789abcdef{end}") for end in ("-a", "-b", "")] == ["ada", "key-2", None]
    for text, message in (("short\n", "at least 16"), ("# none\n", "got none"), ("\xff" * 20, "printable")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            ApiKeys.read(file)
    with pytest.raises(FileNotFoundError):
        find_api_keys(tmp_path / "missing")


def test_hosts_and_ports_are_checked_early() -> None:
    assert loopback_hosts("0.0.0.0") is None
    assert loopback_hosts("127.0.0.1") == {"localhost", "127.0.0.1", "::1"}
    with listen("127.0.0.1", 0) as taken, pytest.raises(OSError, match="cannot listen there"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(OSError, match="cannot listen there"):
        listen("no.such.host.invalid", 1)


def test_small_settings_are_what_the_tests_think(engine: Engine) -> None:
    assert small_request(engine).work == 16 * 16 * 2
    assert SMALL["num_frames"] == EXTRA["num_frames"]
