"""Arrays of the user's own: .npz and .csv files, and pairs of arrays from Python."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from kobai.data import prepare
from kobai.data.files import read_arrays
from kobai.data.splits import DataError, DataSplits

__all__ = ["from_arrays", "read_csv", "read_npz"]

TEST_FRACTION = 0.2
TARGET_COLUMNS = ("target", "label")

_Pair = tuple[Any, Any]


def from_arrays(
    name: str,
    train: _Pair,
    test: _Pair | None = None,
    *,
    generator: Generator,
    likelihood: str | None = None,
    classes: Sequence[str] = (),
    test_fraction: float | None = None,
    source: str | None = None,
) -> DataSplits:
    """Make a data set of arrays or tensors, finding out what the targets are.

    Inputs (N, …): 8-bit ones are pictures, grey ones (N, height, width) being given their channel
    axis; real NumPy arrays become float32; other integers become int64 (tokens). Tensors of real
    numbers keep their type.

    Targets: text and integers (N,) or (N, 1) are classes; integers (N, C) of zeros and ones are
    C Bernoulli outputs; real numbers are regression targets, (N,) becoming (N, 1).

    Args:
        name: Name of the data set, which error messages start with.
        train: Inputs and targets.
        test: Inputs and targets to test on; None draws them from `train`, stratified by class.
        generator: Draws the test set; unused where there is nothing to draw.
        likelihood: What the targets are, where the rule above is not what is meant.
        classes: Class names; by default the distinct text labels in order, or "0", "1", …
        test_fraction: Share to draw for testing, by default 0.2; 0 for no test set.
        source: What to write beside a result; by default the name.

    Raises:
        DataError: If the arrays do not make a data set; see `DataSplits`.
    """
    if test is not None and test_fraction is not None:
        raise DataError(f"{name} has a test set of its own; leave test_fraction out")
    pairs = [train] if test is None else [train, test]
    xs = [_inputs(name, x) for x, _ in pairs]
    ys = [y if isinstance(y, Tensor) else np.asarray(y) for _, y in pairs]
    if isinstance(ys[0], np.ndarray) and ys[0].dtype.kind in "US":
        names = tuple(classes) or tuple(str(label) for label in np.unique(ys[0]))
        ys = [_encode(name, np.asarray(y), names) for y in ys]
        classes = names
    likelihood = likelihood or _likelihood(name, _tensor(name, ys[0]))
    ys = [_targets(name, _tensor(name, y), likelihood) for y in ys]
    num_classes = None
    if likelihood == "categorical":
        if not len(ys[0]):
            raise DataError(f"{name}: there are no training examples")
        num_classes = len(classes) or int(ys[0].max()) + 1
        if not classes and num_classes > len(ys[0]):
            raise DataError(
                f"{name}: labels run to {num_classes - 1} in {len(ys[0])} examples; number the "
                "classes 0, 1, 2, … or pass likelihood='gaussian' if these are measurements"
            )
    facts: dict[str, Any] = {
        "name": name,
        "likelihood": likelihood,
        "num_classes": num_classes,
        "classes": tuple(classes),
        "source": source or name,
    }
    data = list(zip(xs, ys, strict=True))
    whole = DataSplits(train=data[0], test=data[1] if test is not None else None, **facts)
    fraction = TEST_FRACTION if test_fraction is None else test_fraction
    if test is not None or fraction == 0:
        return whole
    x, y = whole.train
    stratify = likelihood == "categorical" and y.ndim == 1
    ours, theirs = prepare.draw_test(y, fraction, stratify=stratify, generator=generator)
    return DataSplits(train=(x[ours], y[ours]), test=(x[theirs], y[theirs]), **facts)


def read_npz(
    path: Path,
    *,
    generator: Generator,
    likelihood: str | None = None,
    test_fraction: float | None = None,
) -> DataSplits:
    """Read arrays `x_train`, `y_train`, `x_test`, `y_test`, or `x` and `y`, from an .npz file.

    An array `classes` may name the classes. Nothing is unpickled. See `from_arrays` for what the
    arrays may be, and for the arguments.

    Raises:
        DataError: If the file is damaged, holds other arrays than these, or no data set.
    """
    arrays = read_arrays(_existing(path))
    classes = [str(label) for label in arrays.pop("classes", np.array([], str)).ravel()]
    keys = set(arrays)
    test: _Pair | None = None
    if keys == {"x", "y"}:
        train = arrays["x"], arrays["y"]
    elif keys in ({"x_train", "y_train"}, {"x_train", "y_train", "x_test", "y_test"}):
        train = arrays["x_train"], arrays["y_train"]
        if "x_test" in keys:
            test = arrays["x_test"], arrays["y_test"]
    else:
        raise DataError(
            f"{path} holds the arrays {', '.join(sorted(keys)) or '(none)'}; expected x and y, or "
            "x_train, y_train and if there is a test set x_test, y_test (classes is optional)"
        )
    return from_arrays(
        str(path),
        train,
        test,
        generator=generator,
        likelihood=likelihood,
        classes=classes,
        test_fraction=test_fraction,
        source=path.name,
    )


def read_csv(
    path: Path,
    *,
    generator: Generator,
    likelihood: str | None = None,
    test_fraction: float | None = None,
) -> DataSplits:
    """Read a comma-separated table: numbers, and one column of targets.

    The target is the column called `target` or `label`, else the last one. There is a header if
    the first row has text where the second has numbers. Targets that are text or whole numbers
    (written without a decimal point) are classes, named as in the file; others are regression
    targets. See `from_arrays` for the arguments.

    Raises:
        DataError: If a row has another number of cells, a feature is no finite number (named by
            line and column), or the table is empty.
    """
    try:
        with _existing(path).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, skipinitialspace=True, strict=True)
            lines, rows = [], []
            for row in reader:
                if any(cell.strip() for cell in row):
                    lines.append(reader.line_num)
                    rows.append([cell.strip() for cell in row])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no readable UTF-8 table ({error})") from error
    if not rows:
        raise DataError(f"{path} is empty; expected rows of comma-separated numbers")
    width = len(rows[0])
    if width < 2:
        raise DataError(
            f"{path} has one column; expected features and a target separated by commas"
        )
    for line, row in zip(lines, rows, strict=True):
        if len(row) != width:
            raise DataError(f"{path}, line {line}: {len(row)} cells; the first row has {width}")
    header = _header(path, rows)
    if header:
        lines, rows = lines[1:], rows[1:]
    named = [column for column, title in enumerate(header) if title.lower() in TARGET_COLUMNS]
    if len(named) > 1:
        raise DataError(f"{path} has {len(named)} target columns; name one `target` or `label`")
    target = named[0] if named else width - 1
    titles = header or [f"{column + 1}" for column in range(width)]
    x = [[cell for column, cell in enumerate(row) if column != target] for row in rows]
    titles_x = [title for column, title in enumerate(titles) if column != target]
    y, classes = _csv_targets(path, [row[target] for row in rows], lines, likelihood)
    return from_arrays(
        str(path),
        (_numbers(path, x, lines, titles_x), y),
        generator=generator,
        likelihood=likelihood,
        classes=classes,
        test_fraction=test_fraction,
        source=path.name,
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the path")
    return path


def _tensor(name: str, array: Any) -> Tensor:
    """Tensors as they are; arrays in a type torch knows, real ones in float32."""
    if isinstance(array, Tensor):
        return array
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: an array is {array.dtype}; expected numbers")
    dtype = array.dtype if array.dtype.kind == "b" or array.dtype == np.uint8 else np.int64
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused as such
        array = np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else dtype)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _inputs(name: str, array: Any) -> Tensor:
    x = _tensor(name, array)
    if x.dtype == torch.uint8 and x.ndim == 3:
        return x[:, None]
    if x.dtype == torch.uint8 and x.ndim == 4 and x.shape[-1] in {1, 3} and x.shape[1] > 4:
        raise DataError(
            f"{name}: pictures of shape {tuple(x.shape)} have their channels last; store them as "
            "(N, channels, height, width)"
        )
    integer = not (x.is_floating_point() or x.is_complex() or x.dtype in {torch.bool, torch.uint8})
    return x.to(torch.int64) if integer else x


def _encode(name: str, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Text labels to their places in `classes`."""
    place = {label: index for index, label in enumerate(classes)}
    try:
        flat = [place[str(label)] for label in labels.ravel()]
    except KeyError as error:
        raise DataError(f"{name}: label {error} is not among the classes {classes}") from error
    return np.array(flat, np.int64).reshape(labels.shape)


def _likelihood(name: str, y: Tensor) -> str:
    if y.is_floating_point():
        return "gaussian"
    if y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1):
        return "categorical"
    if y.ndim == 2 and bool(((y == 0) | (y == 1)).all()):
        if bool((y.sum(1) == 1).all()):
            raise DataError(
                f"{name}: targets of shape {tuple(y.shape)} look one-hot; give the class indices "
                "(N,), or likelihood='bernoulli' if the outputs are independent"
            )
        return "bernoulli"
    raise DataError(
        f"{name}: integer targets of shape {tuple(y.shape)}; expected class labels (N,), zeros and "
        "ones (N, C), or real numbers"
    )


def _targets(name: str, y: Tensor, likelihood: str) -> Tensor:
    if likelihood != "categorical":
        y = y if y.is_floating_point() else y.to(torch.float32)
        return y[:, None] if y.ndim == 1 else y
    if y.is_floating_point() and not bool((y == y.round()).all()):
        raise DataError(f"{name}: class labels must be whole numbers; they are {y.dtype}")
    y = y.to(torch.int64)
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _header(path: Path, rows: list[list[str]]) -> list[str]:
    """The first row if it holds titles, else []."""
    if len(rows) < 2:
        return []
    columns = [c for c, cell in enumerate(rows[1]) if _number(cell) is not None]
    titled = [_number(rows[0][column]) is None for column in columns]
    if not any(titled):
        return []
    if not all(titled) or not all(rows[0][column] for column in columns):
        raise DataError(
            f"{path}: the first row mixes numbers, titles and empty cells; give every column a "
            "title, or none"
        )
    return rows[0]


def _numbers(path: Path, cells: list[list[str]], lines: list[int], titles: list[str]) -> np.ndarray:
    """Cells to finite numbers; the first that is none is named."""
    try:
        values = np.array(cells).astype(np.float64)
        if np.isfinite(values).all():
            return values
    except ValueError:
        pass
    for line, row in zip(lines, cells, strict=True):
        for title, cell in zip(titles, row, strict=True):
            value = _number(cell)
            if value is None or not np.isfinite(value):
                raise DataError(
                    f"{path}, line {line}, column {title}: {cell!r} is no finite number; remove "
                    "the row or fill the gap, and turn categories into numbers"
                )
    raise DataError(f"{path} holds a number that cannot be read")


def _csv_targets(
    path: Path, cells: list[str], lines: list[int], likelihood: str | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    values = [_number(cell) for cell in cells]
    numeric = all(value is not None for value in values)
    whole = numeric and all(cell.lstrip("+-").isdigit() for cell in cells)
    if likelihood not in {None, "categorical"} or (likelihood is None and numeric and not whole):
        return _numbers(path, [[cell] for cell in cells], lines, ["target"]), ()
    if "" in cells:
        raise DataError(f"{path}, line {lines[cells.index('')]}: the target is empty")
    distinct = sorted(set(cells), key=float if numeric else str)
    if likelihood is None and whole and len(distinct) > max(2, len(cells) // 2):
        raise DataError(
            f"{path}: {len(distinct)} different whole-number targets in {len(cells)} rows; pass "
            "likelihood='gaussian' for a regression or likelihood='categorical' for classes"
        )
    return np.array(cells), tuple(distinct)
