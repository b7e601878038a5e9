"""`strandline health`: ask a node's ops port, for container probes and for people."""

from __future__ import annotations

from typing import Annotated

import typer

from strandline.cli.command import FAILED, Options, command, complain, group

commands = group("Health.")

FIELDS = ("node", "status", "live", "ready", "checks")


@command(commands, "health", app="", database=False, json=FIELDS)
def health(
    options: Options,
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL]",
            help="The node's ops port; else ops_host and ops_port of the settings.",
            show_default=False,
        ),
    ] = None,
    *,
    ready: Annotated[
        bool, typer.Option("--ready", help="Only whether it does its part (/readyz).")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Only whether a restart would not help (/livez).")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 5.0,
) -> None:
    """Ask a node how it is, over its ops port; nothing is asked of the database.

    Exit codes: 0 it is well, or only warns; 1 it is not, or does not answer; 2 no address is known.
    Needs no curl, so it serves as the health check of a container.
    """
    from strandline.errors import InvalidInput

    if ready and live:
        raise InvalidInput("--ready and --live are two questions: ask one of them")
    path = "/readyz" if ready else "/livez" if live else "/healthz"
    base = url or _own_url()
    answer = _asked(base, path, timeout, accept="application/json" if options.json else "")
    if isinstance(answer, str):
        complain(f"{base}{path}: {answer}")
        raise typer.Exit(FAILED)
    status, body = answer
    print(body, end="")
    if status != 200:
        raise typer.Exit(FAILED)


def _own_url() -> str:
    """Where the node of this container listens, as its settings say.

    Raises:
        SetupError: They say that it has no ops port, or that any free one will do.
    """
    from strandline.errors import SetupError
    from strandline.settings import load
    from strandline.telemetry.ops_server import url_of

    settings = load()
    if settings.ops_port < 1:
        raise SetupError(
            "where is the node? Name it (`strandline health http://127.0.0.1:9180`),"
            " or set STRANDLINE_OPS_PORT"
        )
    return url_of(settings.ops_host, settings.ops_port)


def _asked(base: str, path: str, timeout: float, accept: str) -> tuple[int, str] | str:
    """Status and text; or why there are none.

    Not by urllib, which would ask the proxy of the environment.

    Raises:
        InvalidInput: The URL is none.
    """
    import http.client
    from urllib.parse import urlsplit

    from strandline.errors import InvalidInput

    try:
        split = urlsplit(base if "//" in base else f"//{base}")
        host, port = split.hostname, split.port
    except ValueError as error:
        raise InvalidInput(f"{base!r} is no URL: {error}") from error
    if split.scheme not in ("", "http") or not host:
        raise InvalidInput(f"{base!r} is no URL of an ops port, such as http://127.0.0.1:9180")
    connection = http.client.HTTPConnection(host, port or 80, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Accept": accept or "text/plain"})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # a host may be no name
        return f"no answer: {error or type(error).__name__}"
    finally:
        connection.close()
