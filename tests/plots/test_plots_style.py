"""Colours keep apart for everyone and stay with their optimizer; maps are even."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from example_results import a_history, a_plane, a_spectrum
from kobai.plots import (
    color_map,
    curves,
    eigenvalues,
    landscape_contour,
    looks_of,
    optimizer_of,
    optimizer_styles,
)
from kobai.plots.style import HUES, plain
from kobai.results import Look

# Machado, Oliveira & Fernandes (2009), severity 1, acting on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def linear(color):
    value = np.array(to_rgb(color))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    ) @ np.clip(rgb, 0, 1)
    return np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    ) @ lms ** (1 / 3)


@pytest.mark.parametrize("vision", VISIONS)
def test_hues_keep_apart(vision):
    seen = [oklab(VISIONS[vision] @ linear(hue)) for hue in HUES]
    apart = [np.linalg.norm(one - two) for one, two in itertools.combinations(seen, 2)]
    assert min(apart) > 0.09


@pytest.mark.parametrize("field", ["loss", "accuracy"])
def test_maps_rise_evenly_in_lightness(field):
    colors = color_map(field)(np.linspace(0, 1, 33))[:, :3]
    lightness = np.array([oklab(linear(color))[0] for color in colors])
    steps = np.diff(lightness)
    assert steps.min() > 0
    assert steps.max() < 1.35 * steps.mean()


def test_an_optimizer_keeps_its_colour():
    looks = {"kfac": Look(color=HUES[2]), "sgd": Look(color=HUES[0], dash="dot")}
    few = optimizer_styles(["kfac", "sgd"], looks)
    many = optimizer_styles(["sgd", "adam", "mine", "kfac"], looks)
    assert few["kfac"] == many["kfac"]
    assert few["sgd"] == many["sgd"]
    assert few["sgd"].pattern == "dot"
    assert optimizer_styles(["b", "a", "b"]) == optimizer_styles(["a", "b"])


def test_no_two_look_the_same():
    names = ["sgd", "adam", "kfac", "adamw", "muon", *(f"custom {i}" for i in range(19))]
    styles = optimizer_styles(names)
    assert len({(style.color, style.pattern) for style in styles.values()}) == 24
    assert len(optimizer_styles([f"x{i}" for i in range(40)])) == 40


def test_a_look_of_ones_own_is_in_every_figure():
    look = Look(label="my method", color="#123456", dash="longdash")
    runs = [a_history("mine", look=look), a_history("sgd")]
    spectra = [a_spectrum("mine", look=look), a_spectrum("sgd")]
    assert looks_of(runs) == looks_of(spectra) == {"mine": look}
    plane = a_plane(looks={"kfac": look})
    drawn = (curves(runs), eigenvalues(spectra), landscape_contour(plane))
    for figure in drawn:
        lines = [line for axes in figure.axes for line in axes.lines]
        colors = {str(line.get_color()) for line in lines}
        colors |= {str(line.get_markerfacecolor()) for line in lines}
        assert look.color in colors
    (legend,) = drawn[0].legends
    assert legend.get_texts()[0].get_text().startswith("my method")


def test_labels_name_their_optimizer():
    assert optimizer_of("kfac-12") == "kfac"
    assert optimizer_of("sgd seed 2") == "sgd"
    assert optimizer_of("saddle-free") == "saddle-free"
    assert optimizer_of("run 3", "adam") == "adam"
    assert optimizer_of("") == ""


def test_a_dollar_begins_no_formula():
    assert plain("cost $5\nand $6") == r"cost \$5 and \$6"
    assert plain("abcdef", limit=4) == "abc…"
