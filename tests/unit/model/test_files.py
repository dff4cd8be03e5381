"""Models as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from broker_fl.model import DTYPES, Model, ModelError


@pytest.fixture
def every_type() -> Model:
    values = {name: np.arange(3).astype(dtype) for name, dtype in DTYPES.items()}
    return Model.of(
        {
            "z": np.array(1.5, np.float32),
            **values,
            "nothing": np.zeros((0, 4), np.float64),
            "a": np.ones((2, 2)),
        }
    )


def test_a_file_brings_back_every_type_in_the_same_order(every_type: Model, tmp_path: Path) -> None:
    every_type.save(tmp_path / "model.safetensors")
    again = Model.load(tmp_path / "model.safetensors")
    assert list(again) == list(every_type)
    assert again.spec == every_type.spec
    assert again.digest == every_type.digest
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_of_other_software_is_read_in_its_own_order(tmp_path: Path) -> None:
    save_file({"b": np.ones(2, np.float32), "a": np.zeros(1)}, tmp_path / "foreign.safetensors")
    assert {name: array.tolist() for name, array in Model.load(tmp_path / "foreign.safetensors").items()} == {
        "a": [0],
        "b": [1, 1],
    }


@pytest.mark.parametrize(
    "order", ["5", "{}", "null", "[1]", "not json", '["a", "a", "b"]', '["a"]', '["a", "c"]']
)
def test_a_damaged_order_never_loses_a_tensor(order: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    save_file({"a": np.ones(2), "b": np.zeros(1)}, path, metadata={"broker_fl.order": order})
    try:
        model = Model.load(path)
    except ModelError as error:
        assert str(path) in str(error)  # noqa: PT017 - either is right, silence about a lost tensor is not
    else:
        assert sorted(model) == ["a", "b"]


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 7, b"\xff" * 64, b'\x08\x00\x00\x00\x00\x00\x00\x00{"a": 1}']
)
def test_what_is_no_safetensors_file_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.safetensors"):
        Model.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing\.safetensors"):
        Model.load(tmp_path / "missing.safetensors")


def test_a_model_that_cannot_be_written_leaves_nothing_behind(every_type: Model, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ModelError, match="cannot be written"):
        every_type.save(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(ModelError, match="cannot be written"):
        every_type.save(tmp_path / "no" / "such" / "folder")
