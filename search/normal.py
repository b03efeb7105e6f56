"""Constants of the normal distribution that intervals and robust spreads are made with."""

from __future__ import annotations

#: Half the width of a 95 % interval, in standard deviations.
SIGMAS_OF_95_PERCENT = 1.959964

#: From the median absolute deviation to the standard deviation.
SIGMA_PER_MAD = 1.4826
