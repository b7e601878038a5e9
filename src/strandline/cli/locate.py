"""Finds the App that MODULE:APP names."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from strandline.errors import SetupError

if TYPE_CHECKING:
    from strandline.app import App

HINT = "give MODULE:APP, such as `shop.events:app`, or set STRANDLINE_APP"


def find_app(reference: str) -> App:
    """The App that *reference*, ``module:name``, means.

    ``module`` alone is enough where the module has one App.

    Raises:
        SetupError: It cannot be found, or is no App; the message says what there is instead.
    """
    from strandline.app import App

    name, _, path = reference.partition(":")
    if name.endswith(".py") or "/" in name:
        dotted = ".".join(Path(name.removesuffix(".py")).parts)
        raise SetupError(f"{name!r} is a file: write the module, e.g. {dotted}:{path or 'app'}")
    module = _imported(name, reference)
    apps = sorted(one for one, value in vars(module).items() if isinstance(value, App))
    if not path:
        if len(apps) == 1:
            found: App = getattr(module, apps[0])
            return found
        raise SetupError(f"{reference!r} does not say which App: {_there(name, apps)}")
    value: Any = module
    for part in path.split("."):
        if not hasattr(value, part):
            raise SetupError(f"module {name!r} has no {path!r}: {_there(name, apps)}")
        value = getattr(value, part)
    if not isinstance(value, App):
        raise SetupError(f"{reference!r} is {_described(value)}, not an App: {_there(name, apps)}")
    return value


def _imported(name: str, reference: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise SetupError(f"{reference!r} is not MODULE:APP: {HINT}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise SetupError(
                f"no module {error.name!r}, looked for in {here} and on sys.path: {HINT}"
            ) from error
        raise _broken(name, error) from error
    except (Exception, SystemExit) as error:
        raise _broken(name, error) from error


def _broken(name: str, error: BaseException) -> SetupError:
    """The error for a module that raises while it is imported."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((f for f in reversed(frames) if "importlib" not in f.filename), None)
    place = f" ({last.filename}:{last.lineno})" if last and last.filename != __file__ else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}:{error.lineno})"
    return SetupError(
        f"module {name!r} cannot be imported: {type(error).__name__}: {error}{place};"
        " --debug shows the traceback"
    )


def _there(module: str, apps: list[str]) -> str:
    if not apps:
        return f"module {module!r} has no App at its top level"
    return "it has " + ", ".join(f"{module}:{one}" for one in apps)


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    kind = type(value)
    if kind.__module__.startswith("strandline.sync"):
        return "a blocking strandline.sync.App"
    return f"a {kind.__module__}.{kind.__qualname__}"
