"""The ops port: health checks and metrics over HTTP, from threads of its own.

Probes must be answered while the event loop is blocked, the database is gone, or the node is on
its way out. So this is the standard library's server in threads that wait for nothing of the node:
one accepts, and each request has one for the seconds it may take. It runs on the same interpreter
all the same: a call in C that holds the interpreter lock holds this up as well, and a probe that
gets no answer is a failed probe, which is right.

A port that cannot be had keeps nothing from running: it is told, and tried again.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from strandline.telemetry.journal import Journal

log = Journal("strandline.ops")

MOST = 32  # connections at once; who comes then is sent away
PATIENCE = 5.0  # seconds for one request, from the connection to the last byte
SHORT = 1.0  # the same, while others come for whom there is no room
AGAIN = 5.0  # seconds between tries to get a port that is taken
LOOK = 0.25  # seconds between looks for requests that take too long, and for the end
LAST = 0.5  # seconds that requests under way still have at the end
TEXT = "text/plain; charset=utf-8"
ANYWHERE = ("", "0.0.0.0", "::")  # noqa: S104 - what is recognised, not what is listened to


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked.

    Attributes:
        path: Without the query.
        query: The last value of each name.
        headers: Names in lower case.
    """

    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def accept(self) -> str:
        """What the client likes to get."""
        return self.headers.get("accept", "")


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered."""

    body: bytes | str
    status: int = 200
    content_type: str = TEXT


Route = Callable[[Request], Response]


class OpsServer:
    """Answers GET and HEAD by *routes*, from ``start`` to ``stop``. Both never raise.

    Args:
        host: Address or name to listen on; empty for all.
        port: Or 0 for any that is free.
        routes: By path. Called in threads of the server, several at once.
        again: Seconds between tries to get the port.
    """

    def __init__(
        self, host: str, port: int, routes: Mapping[str, Route], *, again: float = AGAIN
    ) -> None:
        self._host, self._port, self._again = host, port, again
        self._routes = routes
        self._server: _Server | None = None
        self._tried = threading.Event()
        self._stopping = threading.Event()
        self._closed = threading.Event()  # the port is free
        self._thread: threading.Thread | None = None
        self._told = ""

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens now: host and port; None while it does not."""
        server = self._server
        return None if server is None else (str(server.bound[0]), int(server.bound[1]))

    @property
    def url(self) -> str:
        """Where it is reached from this machine; empty while it is not."""
        return url_of(*found) if (found := self.address) is not None else ""

    @property
    def failure(self) -> str:
        """Why the port is not there; empty if it is, or was not tried yet."""
        return "" if self._server is not None else self._told

    def start(self, *, wait: float = 1.0) -> None:
        """Begin; the first try to get the port is waited for, *wait* seconds at the most."""
        if self._thread is None:
            context = contextvars.copy_context()  # the node's name, for the log
            self._thread = threading.Thread(
                target=lambda: context.run(self._run), name="strandline-ops", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError as error:  # no thread can be had
                self._refused(error)
                return
            self._tried.wait(wait)

    def stop(self, *, timeout: float = 1.0) -> None:
        """End: the port is free afterwards, and requests under way have half a second left."""
        self._stopping.set()
        server = self._server
        if server is not None:
            server.wake()
        if self._thread is not None and self._thread.is_alive():
            self._closed.wait(timeout)

    # ---- the thread that accepts

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                server = _Server(self._host, self._port, self._routes)
            except Exception as error:  # taken, forbidden, or no such address
                self._refused(error)
                self._tried.set()
                self._stopping.wait(self._again)
                continue
            self._server, self._told = server, ""
            _servers.add(server)
            self._tried.set()
            with contextlib.suppress(Exception):  # a filter of the program may raise
                log.tell("ops_port_open", url=self.url)
            self._serve(server)
            if self._stopping.is_set():
                self._closed.set()
            server.finish(LAST)
        self._closed.set()

    def _serve(self, server: _Server) -> None:
        try:
            while not self._stopping.is_set():
                server.handle_request()
                server.cut_old(PATIENCE)
        except Exception as error:  # it begins anew on a new socket
            self._refused(error)
            self._stopping.wait(self._again)
        finally:
            self._server = None
            with contextlib.suppress(OSError):
                server.server_close()

    def _refused(self, error: BaseException) -> None:
        words = str(error) or type(error).__name__
        if words != self._told:  # once, not every few seconds
            self._told = words
            with contextlib.suppress(Exception):  # as above
                log.tell(
                    "ops_port_refused",
                    address=f"{self._host}:{self._port}",
                    seconds=self._again,
                    error=error,
                )


def url_of(host: str, port: int) -> str:
    """How *host* and *port* are asked from the same machine."""
    host = "localhost" if host in ANYWHERE else host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


# ---- the standard library's parts


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    timeout = LOOK
    request_queue_size = 2 * MOST

    def __init__(self, host: str, port: int, routes: Mapping[str, Route]) -> None:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        self.address_family, _, _, _, address = found[0]
        self.routes = routes
        self._open: dict[Any, float] = {}  # since when, the oldest first
        self._cut: set[Any] = set()  # of these, what has been ended and has yet to notice
        self._lock = threading.Lock()
        super().__init__(address, _Handler)  # type: ignore[arg-type]  # IPv6 addresses are longer
        self.bound: tuple[Any, ...] = self.socket.getsockname()

    def server_bind(self) -> None:
        """As the parent's parent does: the parent asks the DNS for our name, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = str(self.server_address[0]), 0

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.05)  # no file descriptor is free: the next try must not be at once
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            has_room = self._has_room()
            if has_room:
                self._open[request] = time.monotonic()
        if not has_room:
            with contextlib.suppress(OSError):
                request.settimeout(0.0)
                request.sendall(_TOO_MANY)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread can be had; the caller closes the connection
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or was too slow is nothing to tell."""

    def cut_old(self, age: float) -> None:
        """End the connections that are older than *age* seconds: one that drips never times out."""
        limit = time.monotonic() - age
        with self._lock:
            for request in [one for one, since in self._open.items() if since <= limit]:
                self._end(request)

    def finish(self, seconds: float) -> None:
        """Let the requests under way end within *seconds*, then end them."""
        until = time.monotonic() + seconds
        while self._open and time.monotonic() < until:
            time.sleep(0.02)
        self.cut_old(0.0)

    def wake(self) -> None:
        """End the wait for the next request, where the platform allows it; else it ends by itself."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def _has_room(self) -> bool:
        """Whether one more may come, if need be in the place of one that only holds its own."""
        held = [one for one in self._open if one not in self._cut]
        if len(held) < MOST:
            return len(self._open) < 2 * MOST
        if time.monotonic() - self._open[held[0]] >= SHORT:
            self._end(held[0])
            return len(self._open) < 2 * MOST
        return False

    def _end(self, request: Any) -> None:
        self._cut.add(request)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def _forget(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
            self._cut.discard(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "strandline"
    sys_version = ""
    default_request_version = "HTTP/1.0"  # else what is no HTTP is answered without a status
    timeout = PATIENCE
    wbufsize = -1  # head and page leave together
    server: _Server

    def do_GET(self) -> None:
        try:
            split = urlsplit(self.path)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(split.path, dict(parse_qsl(split.query)), headers)
        route = self.server.routes.get(request.path)
        if route is None:
            known = "\n".join(sorted(self.server.routes))
            self._answer(Response(f"no such page; there are\n{known}\n", HTTPStatus.NOT_FOUND))
            return
        try:
            response = route(request)
        except Exception as error:  # the next request may go well
            with contextlib.suppress(Exception):  # as above
                log.tell("ops_request_failed", path=request.path, error=error, trace=error)
            words = f"{request.path} failed: {type(error).__name__}\n"
            response = Response(words, HTTPStatus.INTERNAL_SERVER_ERROR)
        self._answer(response)

    do_HEAD = do_GET  # noqa: N815 - the names are http.server's

    def _refuse(self) -> None:
        words = "only GET and HEAD\n"
        self._answer(Response(words, HTTPStatus.METHOD_NOT_ALLOWED), {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815 - as above

    def _answer(self, response: Response, headers: Mapping[str, str] | None = None) -> None:
        body = response.body.encode() if isinstance(response.body, str) else response.body
        self.close_connection = True
        self.send_response(response.status)
        told = {
            "Content-Type": response.content_type,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Connection": "close",
            **(headers or {}),
        }
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the parent refuses by itself, e.g. a line that is too long: as text, not HTML."""
        self.close_connection = True
        self._answer(Response(f"{message or HTTPStatus(code).phrase}\n", code))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as above
        """Requests are not logged: probes come every few seconds."""


_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 21\r\nConnection: close\r\n\r\ntoo many connections\n"
)


# ---- forks

_servers: weakref.WeakSet[_Server] = weakref.WeakSet()


def _in_a_forked_child() -> None:
    """A child keeps the port taken after its parent's end, and answers nobody."""
    for server in list(_servers):
        with contextlib.suppress(Exception):
            server.socket.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_forked_child)
