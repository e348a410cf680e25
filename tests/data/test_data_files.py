"""Where files are looked for, and that only whole and right ones ever appear."""

import gzip
import hashlib
from pathlib import Path

import pooch
import pytest

from kobai.data import DataError
from kobai.data.files import (
    RemoteFile,
    atomic,
    download,
    read_verified,
    search_folders,
    user_cache,
    verify_file,
)

CONTENT = b"what is in the file" * 5000
DIGEST = hashlib.md5(CONTENT).hexdigest()
PLAIN = RemoteFile(name="set.bin", md5=DIGEST, mirrors=(), aliases=("set.raw",))
PACKED = RemoteFile(name="set.gz", md5=DIGEST, mirrors=(), compressed=True)


def everything_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_cache_is_where_the_system_keeps_caches():
    assert user_cache() == Path(pooch.os_cache("kobai")).expanduser()


def test_search_order(isolated, tmp_path, monkeypatch):
    assert search_folders("mnist", None) == (isolated / "mnist", isolated)
    monkeypatch.setenv("KOBAI_DATA", str(tmp_path / "named"))
    named = tmp_path / "named"
    assert search_folders("mnist", None) == (named / "mnist", named, isolated / "mnist", isolated)
    assert search_folders("mnist", str(tmp_path)) == (tmp_path / "mnist", tmp_path)
    monkeypatch.setenv("KOBAI_DATA", "")
    assert search_folders("mnist", None) == (isolated / "mnist", isolated)


def test_the_subfolder_and_the_original_name_come_first(tmp_path):
    folders = search_folders("set", tmp_path)
    assert PLAIN.find(folders) is None
    (tmp_path / "set").mkdir()
    (tmp_path / "set.bin").mkdir()  # a folder is not the file
    for path in (tmp_path / "set.raw", tmp_path / "set" / "set.raw", tmp_path / "set" / "set.bin"):
        path.write_bytes(CONTENT)
        assert PLAIN.find(folders) == path


@pytest.mark.parametrize(("file", "content"), [(PLAIN, CONTENT), (PACKED, gzip.compress(CONTENT))])
@pytest.mark.parametrize("progress", [True, False])
def test_fetches_from_the_loopback(file, content, progress, served, tmp_path):
    (served.folder / file.name).write_bytes(content)
    target = tmp_path / "new" / "folder"
    path = download(file, target, base_url=f"{served.url}/", progress=progress)
    assert path == target / file.name
    assert path.read_bytes() == content
    assert everything_in(target) == [file.name]


def test_the_second_mirror_serves_where_the_first_does_not(served, tmp_path):
    (served.folder / "good").mkdir()
    (served.folder / "good" / "set.bin").write_bytes(CONTENT)
    mirrors = (f"{served.url}/bad", f"{served.url}/good")
    file = RemoteFile(name="set.bin", md5=DIGEST, mirrors=mirrors)
    assert download(file, tmp_path / "t", progress=False).read_bytes() == CONTENT


BAD = {
    "other content": (PLAIN, CONTENT + b"!", "its MD5 is"),
    "cut off": (PLAIN, CONTENT[:-1], "its MD5 is"),
    "empty": (PLAIN, b"", "its MD5 is"),
    "absent": (PLAIN, None, "HTTP 404"),
    "packed, other content": (PACKED, gzip.compress(b"other"), "its MD5 is"),
    "packed, cut off": (PACKED, gzip.compress(CONTENT)[:-9], "cannot be read"),
    "packed, damaged": (PACKED, gzip.compress(CONTENT)[:-8] + bytes(8), "cannot be read"),
    "packed, an error page": (PACKED, b"<html>", "its MD5 is"),
}


@pytest.mark.parametrize(("file", "content", "message"), BAD.values(), ids=BAD)
def test_nothing_appears_that_is_not_right(file, content, message, served, tmp_path):
    if content is not None:
        (served.folder / file.name).write_bytes(content)
    target = tmp_path / "target"
    with pytest.raises(DataError, match=message):
        download(file, target, base_url=served.url, progress=False)
    assert everything_in(target) == []


def test_a_server_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DataError, match=r"set.bin could not be fetched.*ConnectionError"):
        download(PLAIN, tmp_path, base_url="http://127.0.0.1:9", progress=False)
    with pytest.raises(DataError, match="MissingSchema"):
        download(PLAIN, tmp_path, base_url="mirror", progress=False)


def test_a_folder_that_cannot_be_written(served, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        download(PLAIN, tmp_path / "file" / "folder", base_url=served.url, progress=False)


def test_a_damaged_file_is_replaced_only_by_a_right_one(served, tmp_path):
    (tmp_path / "set.bin").write_bytes(b"old")
    (served.folder / "set.bin").write_bytes(b"wrong")
    with pytest.raises(DataError, match="could not be fetched"):
        download(PLAIN, tmp_path, base_url=served.url, progress=False)
    assert (tmp_path / "set.bin").read_bytes() == b"old"
    (served.folder / "set.bin").write_bytes(CONTENT)
    download(PLAIN, tmp_path, base_url=served.url, progress=False)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def write():
        with atomic(tmp_path / "a.txt") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert everything_in(tmp_path) == ["a.txt"]


def test_verification_reads_to_the_end(tmp_path):
    path = tmp_path / "set.bin"
    path.write_bytes(CONTENT)
    verify_file(PLAIN, path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=f"expected {DIGEST}; remove it and fetch again"):
        verify_file(PLAIN, path)
    with pytest.raises(DataError, match="No such file"):
        verify_file(PLAIN, tmp_path / "absent")


def test_packed_or_not_is_seen_from_the_content(tmp_path):
    path = tmp_path / "set.gz"
    for content in (CONTENT, gzip.compress(CONTENT, 1), gzip.compress(CONTENT, 9)):
        path.write_bytes(content)
        assert read_verified(PACKED, path) == CONTENT
