"""The App of ``letters_node`` for commands: ``letters_shop:app``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from letters_node import letters_app  # noqa: E402 - found by the line above

app = letters_app(None)
