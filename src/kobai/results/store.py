"""Results on disk: NAME.json says what it is, NAME.npz holds its arrays."""

import hashlib
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from kobai.results.codec import ResultError, decode, encode
from kobai.results.files import staged
from kobai.results.registry import is_registered

FORMAT = "kobai-result"
SCHEMA = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def save(result: Any, folder: Path | str, name: str) -> Path:
    """Write a result as ``NAME.json`` and, when it has arrays, ``NAME.npz``.

    Both files are written beside their places first and then renamed, arrays before the JSON that
    refers to them; the JSON carries the hash of its arrays, so that a pair that does not belong
    together is noticed. The same result gives the same bytes.

    Args:
        result: An instance of a result class.
        folder: The run folder; made when missing.
        name: Letters, digits, ``.``, ``_`` and ``-``; the same name is replaced.

    Returns:
        The path of the JSON file.

    Raises:
        TypeError: Not a result, or a field that cannot be saved.
        ValueError: A name that is not portable.
        OSError: The folder cannot be written to.
    """
    if not is_registered(type(result)):
        raise TypeError(f"save takes a result; got {type(result).__name__}")
    folder = Path(folder)
    where = _file(folder, name)
    value, arrays = encode(result)
    packed = _pack(arrays) if arrays else b""
    document = {
        "format": FORMAT,
        "schema": SCHEMA,
        "class": type(result).__name__,
        "arrays": {"file": f"{name}.npz", "sha256": _hash(packed)} if arrays else None,
        "value": value,
    }
    text = json.dumps(document, allow_nan=False, ensure_ascii=False, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    archive = where.with_name(f"{name}.npz")
    if arrays:
        with staged(archive, packed) as data, staged(where, text.encode()) as description:
            data.replace(archive)
            description.replace(where)
    else:
        with staged(where, text.encode()) as description:
            description.replace(where)
        archive.unlink(missing_ok=True)  # left by an earlier result of this name
    return where


def load(folder: Path | str, name: str) -> Any:
    """Read a result back.

    Args:
        folder: The run folder.
        name: The name it was saved under.

    Returns:
        The result, equal to the saved one to the last bit, its arrays read-only.

    Raises:
        ResultError: Missing, damaged, truncated, of an unknown class or of a newer schema; one
            line says which file and why.
        ValueError: A name that is not portable.
    """
    where = _file(Path(folder), name)
    try:
        document = json.loads(where.read_bytes())
    except FileNotFoundError:
        raise ResultError(f"{where}: there is no such result") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(f"{where}: damaged or truncated ({_line(error)})") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ResultError(f"{where}: not a kobai result")
    if not isinstance(document.get("schema"), int) or document["schema"] > SCHEMA:
        raise ResultError(
            f"{where}: written with schema {document.get('schema')}, this kobai reads up to "
            f"{SCHEMA}; upgrade kobai"
        )
    try:
        arrays = _unpack(where, document["arrays"]) if document["arrays"] else {}
        result = decode(document["value"], arrays)
    except ResultError as error:
        raise ResultError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ResultError(f"{where}: damaged ({_line(error)})") from None
    if not is_registered(type(result)):
        raise ResultError(f"{where}: damaged (it holds no result)")
    return result


def result_names(folder: Path | str) -> tuple[str, ...]:
    """Names of the results in a folder, sorted; a JSON file that cannot be read counts as one.

    Args:
        folder: The run folder.

    Returns:
        The names; JSON files that are whole but no kobai results are left out.

    Raises:
        ResultError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ResultError(f"{folder}: there is no such folder")
    names = []
    for path in sorted(folder.glob("*.json")):
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            names.append(path.stem)
            continue
        if isinstance(document, dict) and document.get("format") == FORMAT:
            names.append(path.stem)
    return tuple(name for name in names if _NAME.fullmatch(name))


def load_all(folder: Path | str) -> dict[str, Any]:
    """Read every result of a folder.

    Args:
        folder: The run folder.

    Returns:
        Name to result, sorted by name; empty when there are none.

    Raises:
        ResultError: No such folder, or one of them is damaged (to go on without it, take
            ``result_names`` and ``load``).
    """
    return {name: load(folder, name) for name in result_names(folder)}


def _file(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a result; use letters, digits, '.', '_' and '-', beginning "
            "with a letter or digit"
        )
    return folder / f"{name}.json"


def _pack(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            # A fixed date: the same result gives the same bytes.
            member = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w") as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
    return buffer.getvalue()


def _unpack(where: Path, arrays: dict[str, str]) -> dict[str, np.ndarray]:
    archive = where.with_name(f"{where.stem}.npz")
    try:
        packed = archive.read_bytes()
    except OSError:
        raise ResultError(f"its arrays {archive.name} cannot be read") from None
    if _hash(packed) != arrays["sha256"]:
        raise ResultError(f"its arrays {archive.name} are damaged, truncated or of another run")
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as contents:
            return {key: contents[key] for key in contents.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise ResultError(f"its arrays {archive.name} cannot be read: {_line(error)}") from None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
