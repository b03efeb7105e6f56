"""The exceptions of the search package, by what the caller must do.

SearchError
|-- InfeasibleBudget       correct the constraints: no candidate of the space can meet them
|-- KernelNotMeasured      measure the kernel, or stay inside the measured range
`-- LatencyModelError      the whole-network measurements do not support a fit: measure again or more
"""

from __future__ import annotations


class SearchError(Exception):
    """The search cannot go on."""


class InfeasibleBudget(SearchError, ValueError):
    """No candidate of the space can meet a constraint. The text names the smallest value that was reached."""


class KernelNotMeasured(SearchError, LookupError):
    """A kernel's latency is neither in the table nor between measured ones. The text names the kernel and the range."""


class LatencyModelError(SearchError, ValueError):
    """Whole-network measurements from which no correction can be fitted."""
