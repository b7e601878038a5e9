"""Blocking twins of the request-style API, for Django, Flask and scripts.

The same operations run on psycopg connections; what runs in the background (nodes, the daemon)
is asynchronous only. Needs the extra ``sync``.
"""

from strandline.jobs.blocking import JobRef
from strandline.sync.app import App
from strandline.sync.transaction import Transaction

__all__ = ["App", "JobRef", "Transaction"]
