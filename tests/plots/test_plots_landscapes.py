"""Lines, volumes, convexity and panels show what they say; files for other programs are right."""

import csv
import dataclasses
import io
import struct
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.text import Text

from kobai import plots
from kobai.plots.landscape import contour
from kobai.results import Line, Plane, Volume


def words(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


def a_plane(values=None, **changes) -> Plane:
    a, b = np.linspace(-1, 1, 5), np.linspace(0, 1, 4)
    values = 1 + a[:, None] ** 2 + 3 * b[None] if values is None else values
    fields = {
        "label": "plane", "kind": "random", "a": a, "b": b, "axis_names": ("first", "second"),
        "fields": {"loss": values}, "direction_norms": np.array([2.0, 3.0]), "cosine": 0.0,
        "origin": "end",
    }  # fmt: skip
    return Plane(**{**fields, **changes})


def a_line(**changes) -> Line:
    a = np.linspace(-1, 1, 9)
    fields = {
        "label": "line", "kind": "random", "a": a, "axis_name": "direction",
        "fields": {"loss": 1 + a**2, "stderr": 0.1 + 0 * a, "test_loss": 2 + a**2},
        "direction_norm": 2.0, "origin": "end", "points": {"the end": 0.0},
    }  # fmt: skip
    return Line(**{**fields, **changes})


def a_volume() -> Volume:
    axes = [np.linspace(-1, 1, n) for n in (5, 4, 3)]
    grids = np.meshgrid(*axes, indexing="ij")
    return Volume(
        label="volume", kind="random", a=axes[0], b=axes[1], c=axes[2],
        axis_names=("u", "v", "w"), fields={"loss": 1 + grids[0] + 10 * grids[1] ** 2 + grids[2]},
        direction_norms=np.ones(3), cosines=np.eye(3), origin="end",
    )  # fmt: skip


def test_a_line_has_its_band_its_splits_and_its_gap():
    values = a_line().fields["loss"].copy()
    values[0] = np.nan
    line = dataclasses.replace(a_line(), fields={**a_line().fields, "loss": values})
    figure = plots.landscape_lines(line, splits=("test",))
    axes = figure.axes[0]
    drawn = [entry for entry in axes.lines if len(entry.get_xdata()) == 9]
    np.testing.assert_allclose(drawn[0].get_ydata(), values)
    np.testing.assert_allclose(drawn[1].get_ydata(), line.fields["test_loss"])
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(2.2)  # two standard errors above 2
    text = words(figure)
    for said in ("± 2 standard errors", "1 value is not finite (hatched)", "the end", "(test)"):
        assert said in text
    assert any(patch.get_hatch() for patch in axes.patches)


def test_lines_that_lack_a_field_are_refused_by_name():
    with pytest.raises(ValueError, match="test_accuracy"):
        plots.landscape_lines(a_line(), "loss", splits=("test_accuracy",))
    with pytest.raises(ValueError, match="no field 'accuracy'"):
        plots.landscape_lines([a_line()], "accuracy")


def test_panels_share_one_scale_and_count_their_own_gaps():
    low = a_plane()
    values = 100 + 10 * low.fields["loss"]
    values[0, 0] = np.inf
    figure = plots.landscape_panels([low, a_plane(values, label="high")])
    heights = [axes.get_zlim() for axes in figure.axes if hasattr(axes, "get_zlim")]
    assert heights[0] == heights[1]
    assert "1 value is not finite" in words(figure)
    apart = plots.landscape_panels([low, a_plane(values)], equal=False)
    heights = [axes.get_zlim() for axes in apart.axes if hasattr(axes, "get_zlim")]
    assert heights[0] != heights[1]
    with pytest.raises(ValueError, match="titles"):
        plots.landscape_panels([low], titles=("one", "two"))


def test_the_convexity_map_tells_bowls_from_saddles():
    low, high = np.ones((5, 4)), 2 * np.ones((5, 4))
    low[:2] = -4.0
    low[4, 3] = np.nan
    plane = a_plane(fields={"loss": high, "curvature_min": low, "curvature_max": high})
    figure = plots.convexity_map(plane)
    mesh = figure.axes[0].collections[0].get_array()
    values = np.ma.filled(mesh, np.nan).reshape(4, 5).T
    assert (values[:2] == -1.0).all()
    assert (values[2:4] == 0.5).all()
    assert np.isnan(values[4, 3])
    assert "42.1 % of the nodes are not convex" in words(figure)  # 8 of 19
    with pytest.raises(ValueError, match="curvature_min"):
        plots.convexity_map(a_plane())


def test_slices_of_a_volume_are_at_their_places():
    volume = a_volume()
    figure = plots.landscape_slices(volume, axis="c", count=3)
    text = words(figure)
    for said in ("w = −1", "w = 0", "w = 1"):
        assert said in text
    cut = volume.slice("a", -1)
    assert cut.axis_names == ("v", "w")
    np.testing.assert_array_equal(cut.fields["loss"], volume.fields["loss"][-1])
    with pytest.raises(ValueError, match="index 5"):
        volume.slice("a", 5)


def test_infinite_values_are_hatched_and_not_painted():
    values = a_plane().fields["loss"].copy()
    values[3:, 2:] = np.inf
    figure = plots.landscape_contour(a_plane(values))
    assert "4 values are not finite (hatched)" in words(figure)
    paths = [path for c in figure.axes[0].collections for path in c.get_paths() if len(path)]
    inside = [path.contains_point((0.9, 0.9)) for path in paths]
    assert not any(inside)


def test_a_table_has_every_node_in_full_precision():
    values = a_plane().fields["loss"].copy()
    values[0, 1] = 1 / 3
    values[1, 1] = np.nan
    rows = list(csv.DictReader(io.StringIO(plots.to_csv(a_plane(values)))))
    assert len(rows) == 20
    for k, (i, j) in enumerate(np.ndindex(5, 4)):
        assert float(rows[k]["a"]) == a_plane().a[i]
        assert float(rows[k]["b"]) == a_plane().b[j]
        np.testing.assert_equal(float(rows[k]["loss"]), values[i, j])
    assert plots.to_csv(a_line()).startswith("a,loss,stderr,test_loss\n-1.0,2.0,0.1,3.0\n")
    assert len(plots.to_csv(a_volume()).splitlines()) == 61


def test_a_surface_for_paraview_leaves_broken_cells_out():
    values = a_plane().fields["loss"].copy()
    values[0, 0] = np.nan
    root = ET.fromstring(plots.to_vtp(a_plane(values), log=False))
    piece = root.find("PolyData/Piece")
    assert piece is not None
    assert (piece.get("NumberOfPoints"), piece.get("NumberOfPolys")) == ("20", "11")
    arrays = {a.get("Name"): np.array(a.text.split(), float) for a in root.iter("DataArray")}
    points = arrays["points"].reshape(5, 4, 3)
    np.testing.assert_allclose(points[:, 0, 0], 2.0 * a_plane().a)  # distances: norm 2
    np.testing.assert_allclose(points[0, :, 1], 3.0 * a_plane().b)
    np.testing.assert_allclose(arrays["loss"], values.ravel())
    span = values[np.isfinite(values)]
    np.testing.assert_allclose(points[2:, :, 2], (values[2:] - span.min()) * 2 / np.ptp(span))
    assert 0 not in arrays["connectivity"]


@pytest.mark.parametrize("broken", [False, True])
def test_a_solid_is_closed_and_faces_outwards(broken):
    values = a_plane().fields["loss"].copy()
    if broken:
        values[2, 2] = np.nan
    data = plots.to_stl(a_plane(values), log=False)
    (count,) = struct.unpack("<I", data[80:84])
    kind = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("extra", "<u2")])
    facets = np.frombuffer(data[84:], kind)
    assert len(facets) == count
    edges: dict = {}
    for triangle in facets["corners"]:
        corners = [tuple(corner) for corner in triangle.tolist()]
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            edges[start, end] = edges.get((start, end), 0) + 1
    # Closed and consistently oriented: every edge once each way.
    assert all(n == 1 and edges.get((end, start)) == 1 for (start, end), n in edges.items())
    corners = facets["corners"].astype(float)
    volume = (np.cross(corners[:, 0], corners[:, 1]) * corners[:, 2]).sum() / 6
    assert volume > 0
    box = corners.reshape(-1, 3)
    assert np.ptp(box, axis=0).max() == pytest.approx(100.0)
    assert box[:, 2].max() == pytest.approx(44.0)
    if not broken:
        # Prisms under the two triangles of each cell, whose heights are means of their corners.
        z = 4 + 40 * (values - values.min()) / np.ptp(values)
        area = np.ptp(box[:, 0]) * np.ptp(box[:, 1]) / 12
        tops = (z[:-1, :-1] + z[1:, 1:]) / 3 + (z[1:, :-1] + z[:-1, 1:]) / 6
        assert volume == pytest.approx(float(area * tops.sum()), rel=1e-5)


def test_exports_are_files_of_the_formats_asked_for(tmp_path):
    written = plots.export_landscape(a_plane(), tmp_path, "plane")
    assert [path.name for path in written] == ["plane.csv", "plane.vtp", "plane.stl"]
    assert [p.name for p in plots.export_landscape(a_line(), tmp_path, "line")] == ["line.csv"]
    with pytest.raises(ValueError, match="obj"):
        plots.export_landscape(a_plane(), tmp_path, "plane", formats=("obj",))
    assert plots.to_pdf(plots.landscape_lines(a_line())).startswith(b"%PDF")


def test_rings_smaller_than_a_label_carry_none():
    a, b = np.linspace(-1, 1, 21), np.linspace(0, 1, 21)
    distance = np.hypot(a[:, None] / 2, b[None] - 0.5)  # in shares of the sides
    plane = a_plane(distance, a=a, b=b)
    places = contour._label_places(plane, distance.T, np.array([0.02, 0.3]))
    assert len(places) == 1
    assert np.hypot(places[0][0] / 2, places[0][1] - 0.5) == pytest.approx(0.3, abs=0.01)
