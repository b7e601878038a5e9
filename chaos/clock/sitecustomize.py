"""Gives the processes of one node a wall clock of its own: its lead stands in the file ``CHAOS_CLOCK``.

Python loads it at start-up when this folder is on ``PYTHONPATH``, in the side process too. Everything
that asks for the time of day gets the wrong one; expiry must not care, since only the server's clock
and clocks that count from start-up decide it.
"""

import datetime as dt
import mmap
import os
import struct
import time


def _jump(path):
    with open(path, "r+b") as file:
        lead = mmap.mmap(file.fileno(), 8)
    real, real_ns, true_class = time.time, time.time_ns, dt.datetime

    def seconds():
        return struct.unpack("d", lead[:8])[0]

    class Same(type):
        """What the true class made is an instance of its replacement too."""

        def __instancecheck__(cls, one):
            return isinstance(one, true_class)

        def __subclasscheck__(cls, other):
            return issubclass(other, true_class)

    class Shifted(true_class, metaclass=Same):
        __slots__ = ()  # extension modules check the size

        @classmethod
        def now(cls, tz=None):
            return true_class.now(tz) + dt.timedelta(seconds=seconds())

        @classmethod
        def utcnow(cls):
            return true_class.utcnow() + dt.timedelta(seconds=seconds())

    time.time = lambda: real() + seconds()
    time.time_ns = lambda: real_ns() + int(seconds() * 1e9)
    dt.datetime = Shifted


if os.environ.get("CHAOS_CLOCK"):
    _jump(os.environ["CHAOS_CLOCK"])
