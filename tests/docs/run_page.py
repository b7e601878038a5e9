"""Runs the python blocks of one page in order, as one program, and prints what each printed.

Used by test_examples.py, in a process of its own: ``python run_page.py PAGE``. Blocks may use
``await`` at the top level, as in ``python -m asyncio``.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import linecache
import sys
import traceback
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "docs/start"))  # bank.py
from blocks import blocks_of  # noqa: E402


def main(page: Path) -> int:
    module = ModuleType("page")
    sys.modules["page"] = module
    text = page.read_text(encoding="utf-8")
    linecache.cache[str(page)] = (len(text), None, text.splitlines(keepends=True), str(page))
    printed = []
    with asyncio.Runner() as runner:
        for block in blocks_of(text):
            if block.no_run:
                continue
            out = io.StringIO()
            try:
                tree = ast.increment_lineno(ast.parse(block.code, str(page)), block.line)
                code = compile(tree, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                with contextlib.redirect_stdout(out):
                    found = eval(code, module.__dict__)
                    if inspect.iscoroutine(found):
                        runner.run(found)
            except BaseException:
                traceback.print_exc()
                return 1
            printed.append(out.getvalue())
    print(json.dumps(printed))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
