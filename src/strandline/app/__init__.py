"""The app: wires pools, store, projections and this node together."""

from strandline.app.app import App
from strandline.app.transaction import Transaction

__all__ = ["App", "Transaction"]
