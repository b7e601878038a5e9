"""The App of a node with a read model that may meet poison: ``trip_node:app``.

``TRIPS_MENDED=1`` runs the rule that was mended, ``TRIPS_SHARDS`` says into how many it is cut.
"""

from __future__ import annotations

import os

from trip.domain import Day, trip_app
from trip.poison import FragileTrip

MODELS = {"trips": FragileTrip, "days": Day}

app = trip_app(
    os.environ.get("STRANDLINE_DATABASE_URL", ""),
    models=MODELS,
    declared={"shards": int(os.environ.get("TRIPS_SHARDS", "2"))},
    log_level="INFO",
)
