"""Builds the clients that are not written in Python: ``python -m bench.jobs.install``.

graphile-worker needs npm; it brings the Node that it is measured on, for it asks for a newer one than many
systems have, and runs much faster on it. River needs Go. All is fetched as the lock files say, into a
folder of the virtual environment. What cannot be had is told, and the benchmark names it as missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.jobs.systems import CACHE, SYSTEMS, digest, find_go, sources, stamp

LIMIT = 600.0


def main() -> None:
    """Build what is not there yet."""
    for system in SYSTEMS.values():
        if not system.folder or stamp(system.folder) == digest(system.folder):
            continue
        print(f"building the client of {system.name}", flush=True)
        try:
            _build(system.folder)
        except (OSError, subprocess.SubprocessError, LookupError) as error:
            print(f"missing: {system.name}: {error}", file=sys.stderr)
    print(f"clients: {CACHE}")


def _build(folder: str) -> None:
    place = CACHE / folder
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path in sources(folder):
        shutil.copy(path, place)
    {"graphile": _install_graphile, "river": _build_river}[folder](place)
    (place / "built-from").write_text(digest(folder))


def _install_graphile(place: Path) -> None:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise LookupError("there is no node with npm in PATH")
    _run([npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"], place)


def _build_river(place: Path) -> None:
    go = find_go()
    if go is None:
        raise LookupError("there is no go in PATH")
    _run([go, "build", "-trimpath", "-o", "client", "."], place, GOTOOLCHAIN="local")


def _run(command: list[str], place: Path, **env: str) -> None:
    subprocess.run(command, cwd=place, env={**os.environ, **env}, timeout=LIMIT, check=True)


if __name__ == "__main__":
    main()
