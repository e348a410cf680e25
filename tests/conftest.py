"""Shared fixtures: float64 by choice of each test, a guard on the global RNG, the slow marker."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(int(os.environ.get("KOBAI_TEST_THREADS", "1")))


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        slow = [item for item in items if "slow" in item.keywords]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if "slow" not in item.keywords]
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(autouse=True)
def _global_rng_untouched(request):
    """Fail a test during which library code moved torch's global random state.

    A test that must build stock torch modules wraps that part in ``torch.random.fork_rng()``.
    """
    before = torch.get_rng_state()
    yield
    moved = not torch.equal(before, torch.get_rng_state())
    if moved:
        torch.set_rng_state(before)
        pytest.fail("the global torch random state moved; pass a generator instead")


@pytest.fixture
def data_root() -> Path:
    """The folder KOBAI_DATA names; skips where it is absent."""
    root = os.environ.get("KOBAI_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("KOBAI_DATA does not name a folder with the data sets")
    return Path(root)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator for the test's own draws."""
    return torch.Generator().manual_seed(0)
