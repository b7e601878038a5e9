"""The catalogue: every metric, span, attribute and log event. The reference pages are made from it."""

from strandline.telemetry.catalogue.attribute import Attribute
from strandline.telemetry.catalogue.attributes import ATTRIBUTES
from strandline.telemetry.catalogue.log_event import LogEvent
from strandline.telemetry.catalogue.log_events import LOG_EVENTS, LOG_GROUPS
from strandline.telemetry.catalogue.log_fields import LOG_FIELDS
from strandline.telemetry.catalogue.metric import Metric
from strandline.telemetry.catalogue.metrics import CATALOGUE, GROUPS
from strandline.telemetry.catalogue.spans import SPANS, Span

__all__ = [
    "ATTRIBUTES",
    "CATALOGUE",
    "GROUPS",
    "LOG_EVENTS",
    "LOG_FIELDS",
    "LOG_GROUPS",
    "SPANS",
    "Attribute",
    "LogEvent",
    "Metric",
    "Span",
]
