"""The ops port: it answers whatever else hangs, and nothing about it keeps the node from working."""

from __future__ import annotations

import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from strandline.telemetry import ops_server
from strandline.telemetry.ops_server import MOST, OpsServer, Request, Response, Route, url_of

PATIENCE = 30.0


def test_a_page_is_answered_with_what_was_asked() -> None:
    seen: list[Request] = []

    def page(request: Request) -> Response:
        seen.append(request)
        return Response("fine\n", 203, "text/x-fine")

    with serving({"/page": page}) as server:
        answer = ask(server, "/page?a=1&b=2&a=3", headers={"Accept": "text/x-fine"})

    assert (answer.status, answer.body, answer.content_type) == (203, b"fine\n", "text/x-fine")
    assert seen[0].query == {"a": "3", "b": "2"}
    assert seen[0].accept == "text/x-fine"


def test_head_is_answered_without_the_page() -> None:
    with serving({"/": lambda _: Response("four")}) as server:
        answer = ask(server, "/", "HEAD")

    assert (answer.status, answer.body, answer.length) == (200, b"", "4")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_only_reading_is_allowed(method: str) -> None:
    with serving({"/": lambda _: Response("four")}) as server:
        assert ask(server, "/", method).status == 405
        assert ask(server, "/").status == 200


def test_a_page_that_is_not_there_names_those_that_are() -> None:
    with serving({"/one": lambda _: Response(""), "/two": lambda _: Response("")}) as server:
        answer = ask(server, "/three")

    assert answer.status == 404
    assert b"/one\n/two" in answer.body


def test_a_page_that_fails_is_told_and_the_next_request_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_: Request) -> Response:
        raise ZeroDivisionError

    with serving({"/broken": broken, "/": lambda _: Response("fine")}) as server:
        answer = ask(server, "/broken")
        assert (answer.status, answer.body) == (500, b"/broken failed: ZeroDivisionError\n")
        assert ask(server, "/").body == b"fine"

    assert [vars(one)["event"] for one in caplog.records if one.levelno == logging.ERROR] == [
        "ops_request_failed"
    ]


def test_what_is_no_http_at_all_gets_a_short_refusal() -> None:
    with serving({}) as server:
        with connected(server) as client:
            client.sendall(b"\x16\x03\x01 no http\r\n\r\n")
            answer = client.recv(1000)
        assert b"400" in answer
        assert b"<html" not in answer.lower()
        assert ask(server, "/").status == 404


def test_a_page_that_hangs_does_not_hold_up_the_others() -> None:
    hangs, begun = threading.Event(), threading.Event()

    def slow(_: Request) -> Response:
        begun.set()
        hangs.wait(PATIENCE)
        return Response("slow")

    with serving({"/slow": slow, "/": lambda _: Response("fine")}) as server:
        with connected(server) as client:
            client.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
            assert begun.wait(PATIENCE)
            assert ask(server, "/").body == b"fine"
            hangs.set()
            assert client.recv(1000).startswith(b"HTTP/1.1 200")


def test_who_comes_when_all_connections_are_taken_is_sent_away_at_once() -> None:
    with serving({"/": lambda _: Response("fine")}) as server:
        held = [socket.create_connection(address(server)) for _ in range(MOST)]
        try:
            until(lambda: ask(server, "/").status == 503)
        finally:
            for one in held:
                one.close()
        until(lambda: ask(server, "/").status == 200)


def test_a_client_that_drips_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_server, "PATIENCE", 0.5)

    with serving({"/": lambda _: Response("fine")}) as server, connected(server) as client:
        client.settimeout(PATIENCE)
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(200):
            time.sleep(0.1)  # slower than it is patient, and never so slow that a read times out
            try:
                client.sendall(b"x")
            except OSError:
                break
        else:
            pytest.fail("a client that never ends its request was kept")


def test_a_port_that_is_taken_is_told_once_and_had_when_it_is_free(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = OpsServer("127.0.0.1", port, {"/": lambda _: Response("fine")}, again=0.05)
        server.start()
        assert server.address is None
        assert "in use" in server.failure
        time.sleep(0.3)  # several tries
    try:
        until(lambda: server.address is not None)
        assert ask(server, "/").body == b"fine"
        assert server.failure == ""
    finally:
        server.stop()

    told = [vars(one)["event"] for one in caplog.records if one.levelno == logging.WARNING]
    assert told == ["ops_port_refused"]


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_address_that_is_not_ours_keeps_nothing_from_working(host: str) -> None:
    server = OpsServer(host, 0, {})

    began = time.monotonic()
    server.start(wait=0.2)
    server.stop(timeout=0.2)

    assert server.address is None
    assert time.monotonic() - began < 5.0


def test_the_port_is_free_once_it_is_closed_and_closing_twice_does_nothing() -> None:
    with serving({}) as server:
        port = address(server)[1]
    server.stop()

    with serving({"/": lambda _: Response("again")}, port=port) as another:
        assert ask(another, "/").body == b"again"


def test_a_request_under_way_is_answered_although_the_port_closes() -> None:
    begun = threading.Event()

    def slow(_: Request) -> Response:
        begun.set()
        time.sleep(0.1)
        return Response("fine")

    with serving({"/": slow}) as server:
        client = socket.create_connection(address(server), timeout=PATIENCE)
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert begun.wait(PATIENCE)
    with client:
        assert client.recv(1000).endswith(b"fine")


def test_it_listens_on_ipv6_as_well() -> None:
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with serving({"/": lambda _: Response("fine")}, host="::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert ask(server, "/").body == b"fine"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://localhost:80"),  # noqa: S104 - nothing listens
        ("::", "http://localhost:80"),
        ("::1", "http://[::1]:80"),
    ],
)
def test_its_url_can_be_asked_from_the_same_machine(host: str, url: str) -> None:
    assert url_of(host, 80) == url


FORKING = """
import os, time
from strandline.telemetry.ops_server import OpsServer
server = OpsServer("127.0.0.1", 0, {})
server.start(wait=30)
child = os.fork()
if child == 0:
    time.sleep(60)
else:
    print(server.address[1], child, flush=True)
    os._exit(0)  # as if it were killed
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_port() -> None:
    with subprocess.Popen([sys.executable, "-c", FORKING], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        port, child = map(int, parent.stdout.readline().split())
        parent.wait(PATIENCE)
        until = time.monotonic() + PATIENCE
        try:
            while not is_free(port):  # the child has yet to begin
                assert time.monotonic() < until
                time.sleep(0.01)
        finally:
            os.kill(child, signal.SIGKILL)


def is_free(port: int) -> bool:
    """Whether somebody may listen at *port*."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


# ---- helpers


class Answer:
    """What came back."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.body = response.read()
        self.content_type = response.headers["Content-Type"]
        self.length = response.headers["Content-Length"]


@contextmanager
def serving(
    routes: Mapping[str, Route], *, host: str = "127.0.0.1", port: int = 0
) -> Iterator[OpsServer]:
    server = OpsServer(host, port, routes)
    server.start(wait=PATIENCE)
    try:
        yield server
    finally:
        server.stop(timeout=PATIENCE)
        assert server.address is None


def address(server: OpsServer) -> tuple[str, int]:
    assert server.address is not None
    return server.address


@contextmanager
def connected(server: OpsServer) -> Iterator[socket.socket]:
    with socket.create_connection(address(server), timeout=PATIENCE) as client:
        yield client


def ask(
    server: OpsServer, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> Answer:
    client = http.client.HTTPConnection(*address(server), timeout=PATIENCE)
    try:
        client.request(method, path, headers=dict(headers or {}))
        return Answer(client.getresponse())
    finally:
        client.close()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
