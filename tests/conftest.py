"""What several tests ask for by name."""

import numpy as np
import pytest
import torch


@pytest.fixture
def ieee_sqrt(monkeypatch):
    """Gives torch a correctly rounded square root; the library that torch may use for it is off by one ulp at times.

    IEEE 754 asks for correct rounding and processors deliver it, NumPy's and ours do; this is where torch's for-loop
    would differ from itself between processors.
    """

    def sqrt(x):
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.asarray(np.sqrt(x.detach().numpy())))

    monkeypatch.setattr(torch.Tensor, "sqrt", sqrt)
    monkeypatch.setattr(torch.Tensor, "sqrt_", lambda x: x.copy_(sqrt(x)))
