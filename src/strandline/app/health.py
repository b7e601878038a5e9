"""An app seen from outside: its ops port, its health, and the facts that both and the metrics read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from strandline.app.belonging import begun_for
from strandline.app.growth import Growth
from strandline.app.health_checks import Life, Now, everything, liveness, readiness
from strandline.cluster.lease import boot_time
from strandline.errors import MissingExtra
from strandline.telemetry import health
from strandline.telemetry.loop_stamp import LoopStamp
from strandline.telemetry.ops_server import OpsServer, Request, Response, Route
from strandline.telemetry.readings import looked_at

if TYPE_CHECKING:
    from strandline.app.node import Node
    from strandline.app.nodes import Running
    from strandline.loops import Loops
    from strandline.postgres.listener import Listener
    from strandline.postgres.pools import Pools
    from strandline.settings import Settings
    from strandline.telemetry.health import Health
    from strandline.telemetry.metrics import Metrics
    from strandline.telemetry.span_notices import Tracing

Wanted = Literal["live", "ready", "whole"]


class OpsPort:
    """The ops port of one app, and what it knows without asking anybody.

    Args:
        now: A picture of the app, with what is wanted for a probe or for the whole.
        metrics: Of the app.
    """

    def __init__(self, now: Callable[[Wanted], Now], metrics: Metrics) -> None:
        self.stamp = LoopStamp()
        self.growth = Growth()
        self._now = now
        self._metrics = metrics
        self._server: OpsServer | None = None

    def open(self, settings: Settings) -> None:
        """Begin to watch the running loop and, where a port is set, to answer. Never raises."""
        self.stamp.start()
        if self._server is None and settings.ops_port >= 0:
            self._server = OpsServer(settings.ops_host, settings.ops_port, self._routes())
            self._server.start()

    def close(self) -> None:
        """End both. Never raises, and takes a moment at the most."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        self.stamp.stop()

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port it listens on; None while it does not."""
        return self._server.address if self._server is not None else None

    @property
    def url(self) -> str:
        """Where it is reached from this machine; empty while it is not."""
        return self._server.url if self._server is not None else ""

    @property
    def failure(self) -> str:
        """Why the port that is set is not there; empty otherwise."""
        return self._server.failure if self._server is not None else ""

    # ---- pages

    def _routes(self) -> Mapping[str, Route]:
        pages: dict[str, Route] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/healthz": lambda request: health.whole(everything(self._now("whole")), request),
            "/metrics": self._exposed,
        }
        pages["/"] = lambda _: Response("\n".join(pages) + "\n")
        return pages

    def _livez(self, request: Request) -> Response:
        return health.probe(liveness(self._now("live")), request, "live")

    def _readyz(self, request: Request) -> Response:
        return health.probe(readiness(self._now("ready")), request, "ready")

    def _exposed(self, request: Request) -> Response:
        try:
            body, content_type = self._metrics.exposition(request.accept)
        except MissingExtra as error:
            return Response(f"{error}\n", 501)
        return Response(body, 200, content_type)


class HealthFace:
    """An app seen from outside."""

    if TYPE_CHECKING:
        settings: Settings
        ops: OpsPort
        tracing: Tracing
        loops: Loops
        _events_appended: int
        _metrics: Metrics
        _pools: Pools | None
        _node: Node | None
        _listener: Listener | None
        _running: Running

        @property
        def node_name(self) -> str: ...

    def health(self) -> Health:
        """How this app and its node are doing, from what they know; asks the database nothing.

        What the whole cluster looks like, ``strandline doctor`` finds out.
        """
        return everything(self._now("whole"))

    def metrics_page(self, accept: str = "") -> tuple[bytes, str]:
        """What ``/metrics`` of the ops port shows, for a server of your own, and its content type.

        May be called by any thread; asks the database nothing.

        Args:
            accept: The header of that name; it may ask for OpenMetrics.

        Raises:
            MissingExtra: ``prometheus_client`` is not installed.
        """
        return self._metrics.exposition(accept)

    @contextmanager
    def _seen_to_open(self) -> Iterator[None]:
        """Probes are answered from the beginning of the block; where that fails, no more."""
        with begun_for(self.node_name, self.loops):
            self.ops.open(self.settings)
            try:
                self.tracing.start()
                yield
            except BaseException:
                self.tracing.stop()
                self.ops.close()
                raise

    def _end_being_seen(self) -> None:
        """The last of everything, so that probes see a whole stop."""
        self._running.life = Life.NONE
        self.tracing.stop()
        self.ops.close()

    def _now(self, wanted: Wanted) -> Now:
        """A picture for the checks, from any thread; liveness asks no part of the node."""
        running, ops = self._running, self.ops
        look = self._readings if wanted == "whole" else self._pulse
        stopping = running.stopping
        is_stopping = stopping is not None and stopping.is_running
        return Now(
            node=self.node_name,
            settings=self.settings,
            is_open=self._pools is not None,
            life=running.life,
            blocked=partial(ops.stamp.lasting_age, self.settings.live_loop_lag),
            place=ops.stamp.place,
            stop=stopping.report() if stopping is not None and is_stopping else None,
            overdue=stopping.overdue if stopping is not None else 0.0,
            ops_failure=ops.failure,
            facts={} if wanted == "live" else looked_at(look),
            growth=ops.growth,
        )

    def _pulse(self) -> Mapping[str, Any]:
        node = self._node
        return (
            {}
            if node is None or node.cluster is None
            else {"pulse": node.cluster.pulse.statistics()}
        )

    def _readings(self) -> Mapping[str, Any]:
        """A picture of now for metrics and health; may be asked for by another thread."""
        node, pools, listener = self._node, self._pools, self._listener
        now: dict[str, Any] = {
            "node": self.node_name,
            "loops": self.loops.statistics(),
            "events_appended": self._events_appended,
        }
        if pools is not None:
            now["pools"] = [pools.work.statistics(), pools.control.statistics()]
        if listener is not None:
            now["listener"] = listener.statistics()
        if node is not None:
            now["daemon"] = node.statistics()
            now["survey"] = node.survey.statistics()
            now |= node.jobs.statistics()
            now |= node.cluster.statistics() if node.cluster else {}
        if (leadership := now.get("leadership")) is not None:
            now["lease_trust"] = max(0.0, leadership.trusted_until - boot_time())
        elif "leadership" in now:  # a node that does not lead, or no more: it may not know that yet
            now["survey"] = now["job_watch"] = None
        return now
