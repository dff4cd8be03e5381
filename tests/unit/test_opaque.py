from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl import opaque
from broker_fl.model import Array, ModelError


@given(first=st.binary(max_size=40), second=st.binary(max_size=40))
def test_what_was_written_last_is_read_and_nothing_else_is_left(first: bytes, second: bytes) -> None:
    tensor, fresh = opaque.empty(40), opaque.empty(40)
    opaque.write(first, tensor)
    opaque.write(second, tensor)
    opaque.write(second, fresh)
    assert opaque.read(tensor) == second
    assert np.array_equal(tensor, fresh)
    assert tensor.shape == (48,)


def test_too_many_bytes_are_refused_and_change_nothing() -> None:
    tensor = opaque.empty(3)
    opaque.write(b"abc", tensor)
    with pytest.raises(ModelError, match="4 bytes do not fit into a tensor with room for 3"):
        opaque.write(b"abcd", tensor)
    assert opaque.read(tensor) == b"abc"


def test_a_length_that_cannot_be_is_refused() -> None:
    tensor = opaque.empty(3)
    tensor[:8] = 255
    with pytest.raises(ModelError, match="says that it holds 18446744073709551615 bytes, and has room for 3"):
        opaque.read(tensor)


@pytest.mark.parametrize("tensor", [np.zeros(9), np.zeros((3, 3), np.uint8), np.zeros(7, np.uint8)])
def test_another_tensor_is_refused(tensor: Array) -> None:
    with pytest.raises(ModelError, match=r"not in one of type .* and shape"):
        opaque.read(tensor)
