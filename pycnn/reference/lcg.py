"""The reports' generator of initial weights."""

import math
import operator


class LCG:
    """Linear congruential generator, the kind that reports 001 and 004 draw their weights from.

    state = (1664525 * state + 1013904223) mod 2^32, with the constants of Press et al., Numerical Recipes
    (2nd edition, section 7.1); the reports give none. Good enough to break the symmetry between weights, not
    for statistics: neighbouring draws are correlated.
    """

    def __init__(self, seed: int) -> None:
        self.state = operator.index(seed) % 2**32

    def random(self) -> float:
        """The next number, uniform in [0, 1)."""
        self.state = (1664525 * self.state + 1013904223) % 2**32
        return self.state / 2**32

    def uniform(self, a: float, b: float) -> float:
        """Uniform between a and b; report 001 draws from -0.5 to 0.5."""
        return a + (b - a) * self.random()

    def normal(self) -> float:
        """Normal with mean 0 and variance 1 from two draws (Box & Muller 1958)."""
        # 1 - u is in (0, 1], where the logarithm exists.
        radius = math.sqrt(-2 * math.log(1 - self.random()))
        return radius * math.cos(2 * math.pi * self.random())
