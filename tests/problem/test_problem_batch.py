"""Batches: one thing out of inputs and targets, whatever form the inputs have."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kobai.problem import Batch


def numbered(n: int, form: str) -> Batch:
    """A batch of n examples that can be told apart, in one of the three forms."""
    x, z = torch.arange(2.0 * n).view(n, 2), torch.arange(n) + 100
    inputs = {"tensor": x, "tuple": (x, z), "mapping": {"x": x, "z": z}}[form]
    return Batch(inputs, torch.arange(n))


def tensors(batch: Batch) -> list[torch.Tensor]:
    if isinstance(batch.inputs, torch.Tensor):
        return [batch.inputs, batch.targets]
    if isinstance(batch.inputs, tuple):
        return [*batch.inputs, batch.targets]
    return [*batch.inputs.values(), batch.targets]


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(1, 12), chunk=st.integers(1, 15))
def test_chunks_are_the_whole_in_order_and_share_its_memory(form, n, chunk):
    batch = numbered(n, form)
    pieces = list(batch.chunks(chunk))
    assert [piece.size for piece in pieces[:-1]] == [chunk] * (len(pieces) - 1)
    assert 1 <= pieces[-1].size <= chunk
    assert {type(piece.inputs) for piece in pieces} == {type(batch.inputs)}
    for whole, *parts in zip(tensors(batch), *map(tensors, pieces), strict=True):
        assert torch.equal(torch.cat(parts), whole)
        assert {p.untyped_storage().data_ptr() for p in parts} == {
            whole.untyped_storage().data_ptr()
        }


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping"])
def test_take_keeps_inputs_and_targets_together(form):
    batch = numbered(6, form)
    index = torch.tensor([4, 0, 4])
    for taken, whole in zip(tensors(batch.take(index)), tensors(batch), strict=True):
        assert torch.equal(taken, whole[[4, 0, 4]])
    mask = torch.tensor([True, False, False, True, False, False])
    assert batch.take(mask).targets.tolist() == [0, 3]


def test_dtype_applies_to_floating_point_only():
    moved = numbered(3, "mapping").to(dtype=torch.float64)
    assert moved.inputs["x"].dtype == torch.float64
    assert moved.inputs["z"].dtype == torch.int64
    assert moved.targets.dtype == torch.int64
    assert Batch(torch.ones(2), torch.ones(2)).to(dtype=torch.float64).targets.dtype == (
        torch.float64
    )


def test_moving_nowhere_copies_nothing():
    batch = numbered(3, "tensor")
    assert batch.to("cpu").inputs.data_ptr() == batch.inputs.data_ptr()


def test_a_device_applies_to_everything():
    moved = numbered(3, "mapping").to("meta")
    assert {t.device.type for t in tensors(moved)} == {"meta"}


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        numbered(2, "tensor").targets = torch.ones(2)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.ones(3, 2), torch.ones(4), r"agree on the number of examples.*\(3, 2\).*\(4,\)"),
        ((torch.ones(3), torch.ones(2)), torch.ones(3), "agree on the number"),
        ({"a": torch.ones(3), "b": torch.ones(2)}, torch.ones(3), "agree on the number"),
        (torch.ones(0, 2), torch.ones(0), "at least one example"),
        (torch.tensor(1.0), torch.tensor(1.0), "at least one example"),
        (torch.tensor(1.0), torch.ones(2), "agree on the number"),
        ((), torch.ones(2), "at least one input tensor"),
        ({}, torch.ones(2), "at least one input tensor"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        Batch(inputs, targets)


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (np.ones((3, 2)), torch.ones(3)),
        (torch.ones(3, 2), np.ones(3)),
        (torch.ones(3, 2), [0, 1, 2]),
        (None, torch.ones(3)),
        ((torch.ones(3), None), torch.ones(3)),
        ({"a": np.ones(3)}, torch.ones(3)),
    ],
)
def test_what_is_no_tensor_is_refused(inputs, targets):
    # The checker of annotations raises its own subclass of TypeError; either is one clear line.
    with pytest.raises(TypeError):
        Batch(inputs, targets)


@pytest.mark.parametrize("size", [0, -1])
def test_chunks_need_a_size(size):
    with pytest.raises(ValueError, match="chunk size must be at least 1"):
        next(numbered(2, "tensor").chunks(size))
