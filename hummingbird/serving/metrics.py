"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hummingbird.serving.engine import Engine
    from hummingbird.serving.jobs import Job

__all__ = ["Metrics"]

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


class Metrics:
    """Figures of one engine and the requests for it, in a registry of their own.

    Raises:
        ImportError: ``prometheus-client`` is not installed.
    """

    def __init__(self, engine: Engine) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise ImportError("serving needs prometheus-client; pip install prometheus-client") from error

        self._registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "hummingbird_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._wait_s = prometheus.Histogram(
            "hummingbird_job_wait_seconds",
            "From accepting a job to its start.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._work_s = prometheus.Histogram(
            "hummingbird_job_seconds",
            "From the start of a job to its end.",
            ("state",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_EngineCollector(engine))
        prometheus.ProcessCollector(registry=self._registry)
        prometheus.PlatformCollector(registry=self._registry)
        engine.on_end.append(self.note_job)

    def note_request(self, method: str, route: str, status: int) -> None:
        """Count an answer. ``route`` is a pattern, so that the number of series stays bounded."""
        self._requests.labels(method, route, status).inc()

    def note_job(self, job: Job) -> None:
        """Take up the times of a job that has ended."""
        if job.started_s is not None and job.seconds is not None:
            self._wait_s.observe(max(0.0, job.started_s - job.created_s))
            self._work_s.labels(job.state).observe(max(0.0, job.seconds))

    def text(self) -> tuple[bytes, str]:
        """All figures, and the content type of the text."""
        import prometheus_client as prometheus

        return prometheus.generate_latest(self._registry), prometheus.CONTENT_TYPE_LATEST


class _EngineCollector:
    """Reads the engine's own figures whenever they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        stats = self._engine.stats()
        yield GaugeMetricFamily("hummingbird_jobs_queued", "Jobs that wait.", stats.queued)
        yield GaugeMetricFamily("hummingbird_jobs_running", "Jobs in the making.", stats.running)
        yield GaugeMetricFamily("hummingbird_clients_waiting", "Clients whose jobs wait.", stats.clients)
        yield GaugeMetricFamily("hummingbird_output_bytes", "Videos that are kept.", stats.output_bytes)
        yield GaugeMetricFamily(
            "hummingbird_up", "1 while jobs are made, 0 while something is wrong.", self._engine.fault is None
        )
        yield CounterMetricFamily("hummingbird_jobs_submitted", "Jobs accepted.", stats.submitted)
        yield CounterMetricFamily("hummingbird_jobs_refused", "Jobs refused for lack of room.", stats.refused)
        ended = CounterMetricFamily("hummingbird_jobs_ended", "Jobs that have ended.", labels=("state",))
        for state, count in stats.ended.items():
            ended.add_metric((state,), count)
        yield ended
        yield InfoMetricFamily("hummingbird_model", "The loaded model.", {"name": stats.model or ""})
