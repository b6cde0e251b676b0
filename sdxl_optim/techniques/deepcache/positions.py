"""Which steps DeepCache computes in full: evenly spaced, or closer together around a centre. Adaptive positions are in
calibration.py. No torch."""

from __future__ import annotations


def full_steps_uniform(n: int, interval: int) -> frozenset[int]:
    """DeepCache's uniform positions among n steps: every `interval`-th, from the first on."""
    return frozenset(range(0, n, interval))


def full_steps_nonuniform(n: int, interval: int, center: float, power: float) -> frozenset[int]:
    """DeepCache's non-uniform 1:N positions (arXiv:2312.00858, section 3.3): as many full steps as uniform has, spaced
    evenly after a power curve around `center` (a fraction of n), so that they lie densest there. The first is always 0.
    """
    if n <= 0:
        return frozenset()
    count, middle = -(-n // interval), center * n
    low, high = -(middle ** (1 / power)), (n - middle) ** (1 / power)
    steps = {0}
    for k in range(1, count):
        u = low + (high - low) * k / count
        position = middle + (abs(u) ** power if u >= 0 else -(abs(u) ** power))
        steps.add(min(n - 1, max(0, int(position))))
    # Neighbours that fell on the same step are moved to the free step nearest to the centre, so that the count is kept.
    for i in sorted(range(n), key=lambda i: abs(i - middle)):
        if len(steps) >= count:
            break
        steps.add(i)
    return frozenset(steps)
