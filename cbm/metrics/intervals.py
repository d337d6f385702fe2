"""Intervals: how far a share that was measured on some images can be from the share on all such images."""

import math

Z95 = 1.959963984540054
"""Quantile of the normal distribution that leaves 2.5 % on either side."""


def wilson_interval(share: float, count: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a share (Wilson, J. Am. Stat. Assoc. 1927), of 95 % by default.

    It stays between 0 and 1 and has a width also where the share is 0 or 1, unlike the textbook interval
    ``share +- 1.96 * standard error``.

    Args:
        share: share of the images for which something holds.
        count: number of images.
        z: quantile of the normal distribution for another level.

    Returns:
        Its lower and upper end; 0 and 1 without images.

    Example:
        >>> low, high = wilson_interval(0.9, 100)
        >>> f"{low:.3f} to {high:.3f}"
        '0.826 to 0.945'
    """
    if count < 1:
        return 0.0, 1.0
    shrink = 1 / (1 + z**2 / count)
    centre = shrink * (share + z**2 / (2 * count))
    half = shrink * z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
