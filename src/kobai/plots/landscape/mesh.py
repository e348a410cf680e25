"""Landscapes for other programs: tables (CSV), ParaView (VTP), three-dimensional printers (STL)."""

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from kobai.plots.landscape.contour import field_values
from kobai.plots.scales import field_range
from kobai.results import Line, Plane, Volume, atomic_write

FORMATS = ("csv", "vtp", "stl")


def to_csv(result: Line | Plane | Volume) -> str:
    """Every node of a landscape as a row: coordinates, then the fields, in full precision.

    Args:
        result: A line, plane or volume.

    Returns:
        The table, with a first row of names; values that are not finite are ``nan`` and ``inf``.
    """
    names = ("a", "b", "c")[: 1 if isinstance(result, Line) else 2 if _is_plane(result) else 3]
    axes = [getattr(result, name) for name in names]
    grids = [grid.ravel() for grid in np.meshgrid(*axes, indexing="ij")]
    columns = [*grids, *(values.ravel() for values in result.fields.values())]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *result.fields])
    writer.writerows(zip(*(map(repr, column.tolist()) for column in columns), strict=True))
    return text.getvalue()


def to_vtp(plane: Plane, field: str = "loss", *, log: bool | None = None) -> str:
    """A plane as a surface for ParaView: VTK PolyData in XML.

    Points lie at distances in parameter space (coordinate times norm of its direction; the angle of
    oblique directions is kept), with the field as height, scaled to half the longer side; all
    fields are point data, unscaled. Cells with a corner that is not finite are left out.

    Args:
        plane: The plane.
        field: The height.
        log: Logarithmic height or not; by ``field_range``'s rule when None.

    Returns:
        The file's text.

    Raises:
        ValueError: The plane has no such field or nothing is finite.
    """
    points, whole = _points(plane, field, log)
    count = len(plane.b)
    quads = [
        (i * count + j, (i + 1) * count + j, (i + 1) * count + j + 1, i * count + j + 1)
        for i, j in itertools.product(range(len(plane.a) - 1), range(count - 1))
        if whole[i : i + 2, j : j + 2].all()
    ]
    flat = points.reshape(-1, 3)
    data = "\n".join(_array(name, values.ravel(), 1) for name, values in plane.fields.items())
    return (
        '<?xml version="1.0"?>\n'
        '<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian">\n<PolyData>\n'
        f'<Piece NumberOfPoints="{len(flat)}" NumberOfPolys="{len(quads)}">\n'
        f"<Points>\n{_array('points', np.where(np.isfinite(flat), flat, 0.0), 3)}\n</Points>\n"
        f'<PointData Scalars="{_escape(field)}">\n{data}\n</PointData>\n'
        "<Polys>\n"
        f"{_integers('connectivity', [k for quad in quads for k in quad])}\n"
        f"{_integers('offsets', [4 * (k + 1) for k in range(len(quads))])}\n"
        "</Polys>\n</Piece>\n</PolyData>\n</VTKFile>\n"
    )


def to_stl(plane: Plane, field: str = "loss", *, log: bool | None = None) -> bytes:
    """A plane as a solid to print: surface, four walls and a floor, 100 mm along its longer side.

    The mesh is closed and its triangles face outwards. Heights span 40 mm over a floor of 4 mm;
    values that are not finite, or beyond the clip of ``field_range``, are as high as the highest.

    Args:
        plane: The plane.
        field: The height.
        log: Logarithmic height or not; by ``field_range``'s rule when None.

    Returns:
        The file's content (binary STL, little-endian, millimetres).

    Raises:
        ValueError: The plane has no such field or nothing is finite.
    """
    points, _ = _points(plane, field, log)
    top = float(np.nanmax(points[..., 2]))
    points[..., 2] = np.where(np.isfinite(points[..., 2]), points[..., 2], top)
    side = max(np.ptp(points[..., 0]), np.ptp(points[..., 1]))
    low, span = points[..., 2].min(), np.ptp(points[..., 2]) or 1.0
    solid = np.empty_like(points)
    for k in range(2):
        solid[..., k] = (points[..., k] - points[..., k].min()) * 100.0 / side
    solid[..., 2] = 4.0 + 40.0 * (points[..., 2] - low) / span
    floor = solid.copy()
    floor[..., 2] = 0.0
    triangles = [*_grid(solid, up=True), *_grid(floor, up=False)]
    for edge in (
        (slice(None), 0),
        (-1, slice(None)),
        (slice(None, None, -1), -1),
        (0, slice(None, None, -1)),
    ):
        # Along each edge, the solid lies to the left.
        over, under = solid[edge], floor[edge]
        for k in range(len(over) - 1):
            triangles.append((under[k], under[k + 1], over[k + 1]))
            triangles.append((under[k], over[k + 1], over[k]))
    corners = np.asarray(triangles)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    record = np.zeros(
        len(corners), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("extra", "<u2")]
    )
    record["normal"] = normal / np.where(length > 0, length, 1.0)
    record["corners"] = corners
    header = b"kobai loss landscape, millimetres".ljust(80)
    return header + np.array(len(corners), dtype="<u4").tobytes() + record.tobytes()


def export_landscape(
    result: Line | Plane | Volume,
    folder: Path | str,
    name: str,
    *,
    formats: Sequence[str] = FORMATS,
    field: str = "loss",
) -> list[Path]:
    """Write a landscape in formats of other programs; VTP and STL are for planes.

    Args:
        result: A line, plane or volume.
        folder: Where; made when missing.
        name: File name without its ending.
        formats: Some of "csv", "vtp" and "stl".
        field: The height of surfaces.

    Returns:
        The paths written.

    Raises:
        ValueError: An unknown format.
    """
    unknown = [kind for kind in formats if kind not in FORMATS]
    if unknown:
        raise ValueError(f"unknown format {unknown[0]!r}; choose from {', '.join(FORMATS)}")
    written = []
    for kind in formats:
        if kind == "csv":
            content: str | bytes = to_csv(result)
        elif not isinstance(result, Plane):
            continue
        else:
            content = to_vtp(result, field) if kind == "vtp" else to_stl(result, field)
        written.append(atomic_write(Path(folder) / f"{name}.{kind}", content))
    return written


def _is_plane(result: Line | Plane | Volume) -> bool:
    return isinstance(result, Plane)


def _points(
    plane: Plane, field: str, log: bool | None
) -> tuple[Float[np.ndarray, "A B 3"], np.ndarray]:
    """Points in parameter-space distances with a height to scale, and where the field is finite."""
    values = field_values(plane, field)
    shown = field_range(values, log=log)
    finite = np.isfinite(values)
    height = np.clip(np.where(finite, values, shown.high), None, shown.high)
    height = np.log10(height) if shown.log else height
    cosine = plane.cosine if np.isfinite(plane.cosine) else 0.0
    norms = np.where(np.isfinite(plane.direction_norms), plane.direction_norms, 1.0)
    a, b = np.meshgrid(plane.a * norms[0], plane.b * norms[1], indexing="ij")
    x, y = a + cosine * b, np.sqrt(max(1.0 - cosine**2, 0.0)) * b
    scale = 0.5 * max(np.ptp(x), np.ptp(y)) / (np.ptp(height[finite]) or 1.0)
    z = np.where(finite, (height - height[finite].min()) * scale, np.nan)
    return np.stack((x, y, z), axis=-1), finite


def _grid(points: Float[np.ndarray, "A B 3"], *, up: bool) -> list[tuple]:
    triangles = []
    for i, j in itertools.product(range(points.shape[0] - 1), range(points.shape[1] - 1)):
        p, q, r, s = points[i, j], points[i + 1, j], points[i + 1, j + 1], points[i, j + 1]
        triangles += [(p, q, r), (p, r, s)] if up else [(p, r, q), (p, s, r)]
    return triangles


def _array(name: str, values: np.ndarray, components: int) -> str:
    text = " ".join(f"{value:.9g}" for value in values.ravel())
    return (
        f'<DataArray type="Float64" Name="{_escape(name)}" NumberOfComponents="{components}" '
        f'format="ascii">{text}</DataArray>'
    )


def _integers(name: str, values: Sequence[int]) -> str:
    text = " ".join(map(str, values))
    return f'<DataArray type="Int64" Name="{name}" format="ascii">{text}</DataArray>'


def _escape(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text
