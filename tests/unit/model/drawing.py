"""Arrays of every type and shape, drawn at random."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker_fl.model import DTYPES

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def bits(array: np.ndarray[Any, Any]) -> bytes:
    """Values as bytes: NaNs and negative zeros count, unlike with ``==``."""
    return np.ascontiguousarray(array).tobytes()


@st.composite
def arrays(draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPES)) -> np.ndarray[Any, Any]:
    dtype = DTYPES[draw(st.sampled_from(dtypes))]
    shape = draw(SHAPES)
    length = int(np.prod(shape)) * dtype.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=length, max_size=length)), np.uint8)
    return (raw & 1 if dtype == np.bool_ else raw).view(dtype).reshape(shape)


def models() -> st.SearchStrategy[dict[str, np.ndarray[Any, Any]]]:
    return st.dictionaries(NAMES, arrays(), max_size=6)
