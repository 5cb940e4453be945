"""A measured number with its 95 % interval, however that was estimated."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from scipy import special
from torch import Tensor

_Z = 1.96  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Interval:
    """A measured number and its 95 % interval.

    It formats itself: `f"{Interval(0.123, 0.1, 0.15)}"` is "0.123 [0.100, 0.150]", with as many
    decimals as give its width two digits, and `:.2g` asks for others.  `0 in interval` says whether
    a difference may be noise, and `value, low, high = interval` takes it apart.
    """

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """Format as "value [low, high]", with spaces at which no line breaks."""
        width = self.high - self.low
        if not spec and 0 < width < math.inf:
            spec = f"z,.{max(0, 1 - math.floor(math.log10(width)))}f"
        value, low, high = (format(number, spec or ".4g") for number in self)
        return f"{value}\N{NO-BREAK SPACE}[{low},\N{NO-BREAK SPACE}{high}]"

    def __iter__(self) -> Iterator[float]:
        """Iterate over value, low and high."""
        return iter((self.value, self.low, self.high))

    def __contains__(self, number: float) -> bool:
        """Tell whether a number lies within the interval."""
        return self.low <= number <= self.high

    def __sub__(self, other: "Interval") -> "Interval":
        """Subtract a number measured independently: the widths add in quadrature."""
        value = self.value - other.value
        below = math.hypot(self.value - self.low, other.high - other.value)
        above = math.hypot(self.high - self.value, other.value - other.low)
        return Interval(value, value - below, value + above)

    @property
    def margin(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    @staticmethod
    def normal(value: float, standard_error: float) -> "Interval":
        """Take 1.96 standard errors to each side."""
        return Interval(value, value - _Z * standard_error, value + _Z * standard_error)

    @staticmethod
    def student_t(values: Sequence[float], alpha: float = 0.05) -> "Interval":
        """Estimate the mean of at least 2 independent values at 1 - alpha [Student 1908].

        Where one of them is not finite, nothing is known: the interval has no ends.
        """
        n, mean = len(values), fmean(values)
        if not all(map(math.isfinite, values)):
            return Interval(mean, -math.inf, math.inf)
        margin = float(special.stdtrit(n - 1, 1 - alpha / 2)) * stdev(values) / math.sqrt(n)
        return Interval(mean, mean - margin, mean + margin)

    @staticmethod
    def bootstrap(statistics: Tensor) -> "Interval":
        """Take the middle 95 % of resamples; statistics [1 + R] begin with the measured value."""
        value, resamples = statistics[0].item(), statistics[1:]
        return Interval(value, *(resamples.quantile(q).item() for q in (0.025, 0.975)))

    @staticmethod
    def centered_bootstrap(statistics: Tensor) -> "Interval":
        """Take the spread of resamples around the measured value, as `bootstrap` does else.

        Resampling biases a distance upward, because an image that is drawn twice lies near itself.
        """
        value, resamples = statistics[:1], statistics[1:]
        return Interval.bootstrap(torch.cat([value, resamples - resamples.mean() + value]))

    @staticmethod
    def wilson(successes: int, n: int) -> "Interval":
        """Estimate a proportion from n trials [Wilson 1927]."""
        share, square = successes / n, _Z**2 / n
        center = (share + square / 2) / (1 + square)
        margin = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
        return Interval(share, max(0.0, center - margin), min(1.0, center + margin))

    def widened_to_wilson(self, n: int) -> "Interval":
        """Widen the interval of a proportion of n near 0 or 1, where all resamples are equal.

        Each side is at least as wide as Wilson's interval of 0 successes, and ends at 0 or 1.
        """
        least = Interval.wilson(0, n).high
        low, high = min(self.low, self.value - least), max(self.high, self.value + least)
        return Interval(self.value, max(0.0, low), min(1.0, high))
