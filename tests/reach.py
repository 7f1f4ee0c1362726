"""How close two runs of rounded steps can be: as close as the largest numbers on their way allow.

A value that was a thousand once and is nearly zero now carries the roundings of the thousand. Where torch's last digits
are others than ours (its square roots, and sums that are not fused on some processors) no relative tolerance of the
end alone is met by every processor.
"""

import numpy as np


class Reach:
    """The largest magnitude that each element of each value has had."""

    def __init__(self):
        self.largest = {}

    def note(self, what, value):
        now = np.abs(np.asarray(value))
        self.largest[what] = np.maximum(self.largest.get(what, 1.0), now)

    def assert_close(self, what, ours, theirs, rtol, atol):
        """Within `rtol` of the value, or `atol` of the reach where that is more than one."""
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, what
        far = ~(np.abs(ours - theirs) <= rtol * np.abs(theirs) + atol * self.largest[what])
        assert not far.any(), f"{what}: {ours[far][:5]}, torch's {theirs[far][:5]}, reach {self.largest[what][far][:5]}"
