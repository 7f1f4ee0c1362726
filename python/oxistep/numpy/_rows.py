"""Rows of sparse matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from oxistep.numpy._types import Array


def rows_of(matrix: Any, parameter: Array) -> tuple[Array, Array]:
    """Return which rows of a sparse matrix of SciPy's hold something, and these rows as an array."""
    if matrix.shape != parameter.shape:
        raise ValueError(f"a sparse gradient has shape {matrix.shape}, expected {parameter.shape} like its parameter")
    rows = matrix.tocsr()
    named = np.flatnonzero(np.diff(rows.indptr))
    return named, rows[named].toarray()
