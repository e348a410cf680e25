"""Small stand-ins for the original files, a cache of one's own, a server on the loopback."""

import functools
import gzip
import io
import tarfile
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from data_files import idx, md5, python2_batch

from kobai.data import cifar10, files, mnist, registry


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def isolated(tmp_path, monkeypatch):
    """No data folder named, and a user cache of the test's own."""
    monkeypatch.delenv("KOBAI_DATA", raising=False)
    cache = tmp_path / "user cache"
    monkeypatch.setattr(files, "user_cache", lambda: cache)
    return cache


@pytest.fixture
def tiny_mnist(rng, monkeypatch):
    """Four small IDX files that stand in for the originals: contents by name, and the arrays."""
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (30, 28, 28)),
        "train-labels-idx1-ubyte": np.arange(30) % 10,
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (20, 28, 28)),
        "t10k-labels-idx1-ubyte": np.arange(20) % 10,
    }
    contents = {name: idx(array) for name, array in arrays.items()}
    tiny = tuple(
        replace(file, md5=md5(contents[file.name.removesuffix(".gz")]), mirrors=())
        for file in mnist.FILES
    )
    monkeypatch.setattr(mnist, "FILES", tiny)
    entry = replace(registry.DATA_SETS["mnist"], files=tiny)
    monkeypatch.setitem(registry.DATA_SETS, "mnist", entry)
    return SimpleNamespace(contents=contents, arrays=arrays, files=tiny)


@pytest.fixture
def write_mnist(tiny_mnist):
    def write(folder, *, compressed=True):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in tiny_mnist.contents.items():
            path = folder / (f"{name}.gz" if compressed else name)
            path.write_bytes(gzip.compress(content) if compressed else content)
        return folder

    return write


@pytest.fixture
def tiny_cifar10(rng, tmp_path, monkeypatch):
    """Six small batches as an archive and as a folder, with their checksums put in the tables."""
    data = {batch.name: rng.integers(0, 256, (10, 3072)) for batch in cifar10.BATCHES}
    labels = {name: rng.integers(0, 10, 10).tolist() for name in data}
    contents = {name: python2_batch(data[name], labels[name]) for name in data}
    contents["batches.meta"] = b"not read"

    def pack(contents: dict[str, bytes]) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            folder = tarfile.TarInfo(cifar10.FOLDER)
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for name, content in contents.items():
                entry = tarfile.TarInfo(f"{cifar10.FOLDER}/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return stream.getvalue()

    def trust(archive: bytes, contents: dict[str, bytes]) -> None:
        """Take these for the originals."""
        original = replace(cifar10.ARCHIVE, md5=md5(archive), mirrors=())
        batches = tuple(replace(b, md5=md5(contents[b.name])) for b in cifar10.BATCHES)
        monkeypatch.setattr(cifar10, "ARCHIVE", original)
        monkeypatch.setattr(cifar10, "BATCHES", batches)
        entry = replace(registry.DATA_SETS["cifar10"], files=(original,))
        monkeypatch.setitem(registry.DATA_SETS, "cifar10", entry)

    archive = pack(contents)
    trust(archive, contents)
    return SimpleNamespace(
        data=data, labels=labels, contents=contents, archive=archive, pack=pack, trust=trust
    )


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and the address at which a loopback server gives its files."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
