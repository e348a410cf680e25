"""Tolerances from the dtype and the size of the problem, in one place."""

import torch


def relative(dtype: torch.dtype, size: int = 1) -> float:
    """A relative tolerance for sums of about `size` rounded terms."""
    return 1e3 * torch.finfo(dtype).eps * max(1.0, size) ** 0.5


def assert_close(actual, expected, tolerance=1e-10):
    """Largest difference within `tolerance` of the largest expected entry."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    scale = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-300)
    error = float((actual - expected).abs().max()) if expected.numel() else 0.0
    assert error <= tolerance * max(scale, 1.0), f"error {error:.3e} at scale {scale:.3e}"
