"""The real MNIST and CIFAR-10, where KOBAI_DATA names a folder that holds them."""

import pytest
import torch

from kobai.data import available, files, load, verify


@pytest.fixture
def found(data_root, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "user_cache", lambda: tmp_path)
    return {row.name for row in available() if row.found}


def test_mnist_is_mnist(found):
    if "mnist" not in found:
        pytest.skip("no MNIST in KOBAI_DATA")
    data = load("mnist", download=False)
    x, y = data.train
    assert data.test is not None
    assert (x.shape, data.test[0].shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    # Counts of the classes: LeCun, Cortes and Burges; mean and deviation of the pixels, as
    # everybody normalises with them.
    assert y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test[1][:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert abs(float(x.mean()) - 0.1307) < 1e-4
    assert abs(float(x.std()) - 0.3081) < 1e-4
    assert all(check.ok for check in verify("mnist"))


@pytest.mark.slow
def test_cifar10_is_cifar10(found):
    if "cifar10" not in found:
        pytest.skip("no CIFAR-10 in KOBAI_DATA")
    data = load("cifar10", download=False)
    x, y = data.train
    assert data.test is not None
    assert (x.shape, data.test[0].shape) == ((50000, 3, 32, 32), (10000, 3, 32, 32))
    assert y.bincount().tolist() == [5000] * 10
    assert data.test[1].bincount().tolist() == [1000] * 10
    # Per-channel means that everybody normalises with; JPEG moves them by less than a grey level.
    torch.testing.assert_close(
        x.mean((0, 2, 3)), torch.tensor([0.4914, 0.4822, 0.4465]), rtol=0, atol=1 / 255
    )
    again = load("cifar10", download=False, limit=100)
    assert again.source == data.source
    assert torch.equal(again.train[0][0], x[0])
