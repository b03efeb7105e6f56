"""How often somebody may do something: buckets that hold a minute's worth and fill steadily.

In the memory of one process: several API processes each allow the whole rate. That is enough for what it is for, a loop
that runs away and somebody who tries tokens; floods are a proxy's business.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_PERIOD_S = 60.0


@dataclass(slots=True)
class _Bucket:
    level: float
    at_s: float


class RateLimit:
    """`per_minute` events for each key, at once or spread; 0 is without limit. Safe to use from several threads.

    Remembers the `max_keys` keys that were seen last, so that strangers cannot fill the memory.
    """

    def __init__(self, per_minute: int, *, max_keys: int = 20_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._max_keys = max_keys
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, key: str) -> int | None:
        """Take one event; None where that is allowed, else in how many whole seconds it will be."""
        if self._per_minute == 0:
            return None
        now_s, per_second = self._clock(), self._per_minute / _PERIOD_S
        with self._lock:
            bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._buckets[key] = _Bucket(float(self._per_minute), now_s)
                if len(self._buckets) > self._max_keys:
                    self._buckets.popitem(last=False)
            else:
                self._buckets.move_to_end(key)
                filled = bucket.level + (now_s - bucket.at_s) * per_second
                bucket.level, bucket.at_s = min(float(self._per_minute), filled), now_s
            if bucket.level >= 1.0:
                bucket.level -= 1.0
                return None
            return math.ceil((1.0 - bucket.level) / per_second)
