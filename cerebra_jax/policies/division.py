"""How the slots of a program are divided among its layers by what their routers want. No JAX.

The demand of a layer is the share of tokens that its router wants on the heavy path, those included
that find no slot, in the fullest segment: `gates.wanted` of metrics.jsonl. A division is the rate
of each layer in units of the rate of all of them, as net.route.by_layer is written. An even
division is the empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

LEAST = 0.1  # of the even share: what a layer has whatever it wants, so that it can want more again
MOVED = 0.1  # of the even share: how much must move before a division is another one
DIGITS = 2  # of a division, so that a person can write it
HALVINGS = 16  # of the interval in which the largest division within a cost is looked for

Division = tuple[float, ...]


def by_demand(wanted: Sequence[float]) -> Division:
    """Returns the division that a demand asks for: LEAST + (1 − LEAST) · wanted / mean.

    Its mean is 1. It is even where nobody wants anything.
    """
    mean = sum(wanted) / len(wanted)
    if mean == 0.0:
        return (1.0,) * len(wanted)
    return tuple(LEAST + (1.0 - LEAST) * n / mean for n in wanted)


def divided(
    wanted: Sequence[float], now: Division, most: float, pays: Callable[[Division], bool]
) -> Division:
    """Returns the largest division in the proportions of the demand that the program pays for.

    It is `now`, or even, where no layer would gain or lose MOVED. most: the part of a layer that
    has a slot for every token; what it would have beyond that goes to the others. pays: whether the
    executed cost of a division is within that of the program; true of the smaller ones.
    """
    asked = by_demand(wanted)

    def sized(factor: float) -> Division:
        return tuple(max(10.0**-DIGITS, round(min(most, factor * n), DIGITS)) for n in asked)

    low, high = 0.0, most / min(asked)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if pays(sized(middle)) else (low, middle)
    found = sized(low)
    for settled in (now, ()):
        if _moved(found, settled or (1.0,) * len(found)) < MOVED:
            return settled
    return found


def _moved(new: Division, old: Division) -> float:
    """Returns how much of its even share a layer gains or loses at most, whatever the rates."""
    shares = ([n * len(one) / sum(one) for n in one] for one in (new, old))
    return max(abs(a - b) for a, b in zip(*shares, strict=True))


def stored(by_layer: Sequence[float]) -> Division:
    """Returns a division as it was found, of numbers that were stored in 32 bits."""
    found = tuple(round(float(n), DIGITS) for n in by_layer)
    return () if set(found) <= {1.0} else found
