"""Sections 8.2.4 and 8.2.5: cliffs, exploding and vanishing gradients."""

import math

import numpy as np
import torch
from torch import Tensor

from kobai import models, seeds
from kobai.problem import Analytic
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.page import Page, judge
from kobai.reproductions.deep_learning_book.surface_paths import (
    contours,
    map_panel,
    path,
    values_along,
    walk,
)
from kobai.reproductions.figures import FigureOutcome
from kobai.results import Finding, Panel, Panels, Series


def _clipped(objective: Analytic, rate: float, bound: float, steps: int) -> np.ndarray:
    """Gradient descent whose gradients are shortened to a bound."""
    optimizer = torch.optim.SGD(objective.space.module.parameters(), lr=rate)
    points = [objective.theta()]
    for _ in range(steps):
        objective()
        torch.nn.utils.clip_grad_norm_(objective.space.module.parameters(), bound)
        optimizer.step()
        points.append(objective.theta())
    return torch.stack(points).numpy()


def unrolled_loss(w: Tensor, u: Tensor, steps: int) -> Tensor:
    """½(h_T + 0.7)² of the one-unit recurrent net h ← tanh(w h + u), from h = 0.1."""
    h = torch.as_tensor(0.1, dtype=w.dtype)
    for _ in range(steps):
        h = torch.tanh(w * h + u)
    return 0.5 * (h + 0.7).square()


def cliffs(config: Config) -> FigureOutcome:
    """The surface with a wall, and a one-unit recurrent network that has one of its own."""
    del config
    # The recurrent net: a cut through the loss, and descent towards the wall.
    across = np.linspace(0.5, 4.0, 4001)
    lines, walls = [], {}
    for steps in (3, 6, 12):
        w = torch.from_numpy(across).requires_grad_()
        losses = torch.func.vmap(lambda a, t=steps: unrolled_loss(a, torch.tensor(-0.1).double(),
                                                                  t))(w)  # fmt: skip
        (slope,) = torch.autograd.grad(losses.sum(), w)
        walls[steps] = float(slope.abs().max())
        lines.append(Series(label=f"{steps} steps in time", x=across, y=losses.detach().numpy()))

    def loss(theta: Tensor) -> Tensor:
        return unrolled_loss(theta[0], theta[1], 8)

    start = torch.tensor([1.6, -0.0396]).double()
    runs = {
        "plain": walk(
            (plain := Analytic(loss, start)),
            torch.optim.SGD(plain.space.module.parameters(), lr=0.5), 200),
        "clipped to norm 0.1": _clipped(Analytic(loss, start), 0.5, 0.1, 200),
    }  # fmt: skip
    descent = [
        Series(
            label=name, x=np.arange(len(w), dtype=float), y=values_along(Analytic(loss, start), w)
        )
        for name, w in runs.items()
    ]
    jump = {n: float(np.linalg.norm(np.diff(w, axis=0), axis=1).max()) for n, w in runs.items()}
    end = {s.label: float(s.y[-1]) for s in descent}
    ground = contours(loss, (0.5, 4.0), (-0.6, 0.6), np.linspace(0.01, 1.44, 14))
    growth = walls[12] / walls[3]
    return FigureOutcome(
        results={
            "motion": Panels(
                label="8.2.4", title="A step from the edge of a cliff", columns=2,
                panels=(
                    map_panel("recurrent net, 8 steps in time", ground,
                              [path(n, np.clip(w, [0.5, -0.6], [4.0, 0.6]))
                               for n, w in runs.items()], names=("w", "u")),
                    Panel(title="loss along the descent", x_label="step", y_label="loss",
                          series=tuple(descent)),
                ),
                note="h ← tanh(w h + u); paths that leave the map are drawn at its border.",
            ),
            "walls": Panels(
                label="8.2.4", title="Depth in time makes the wall", panels=(
                    Panel(title="loss at u = −0.1", x_label="w", y_label="loss",
                          series=tuple(lines)),
                ),
            ),
        },
        findings=[
            *(Finding(claim="8.2.4-steep", what=f"steepest slope, {t} steps in time", measured=s)
              for t, s in walls.items()),
            *(Finding(claim="8.2.4-clip", what=f"longest move, {n}", measured=j)
              for n, j in jump.items()),
            *(Finding(claim="8.2.4-clip", what=f"loss after 200 steps, {n}", measured=v)
              for n, v in end.items()),
        ],
        verdicts=[
            judge("8.2.4-steep", growth > 3, because="the steepest slope grows from "
                  f"{walls[3]:.1f} at 3 steps in time to {walls[12]:.3g} at 12"),
            judge("8.2.4-throws", jump["plain"] > 1,
                  because=f"the plain step moves the parameters by {jump['plain']:.2f}"),
            judge("8.2.4-clip", end["clipped to norm 0.1"] < end["plain"],
                  jump["clipped to norm 0.1"] < 0.1,
                  because=f"the longest move falls from {jump['plain']:.2f} to "
                  f"{jump['clipped to norm 0.1']:.3f}, the loss at the end from "
                  f"{end['plain']:.3f} to {end['clipped to norm 0.1']:.1e}"),
        ],
        note="Rate 0.5 for both.",
    )  # fmt: skip


def dependencies(config: Config) -> FigureOutcome:
    """Powers of a matrix, gradients through time, and through a forward net of equal depth."""
    draw = seeds.generator(config.seed, "matrices")
    width, depth = 40, 60
    base = torch.randn(width, width, generator=draw, dtype=torch.float64) / math.sqrt(width)
    radius = float(torch.linalg.eigvals(base).abs().max())
    x = np.arange(1, depth + 1, dtype=float)
    powers, rates = [], {}
    for scale in (0.8, 1.0, 1.2):
        w = base / radius * scale
        vector = torch.randn(width, generator=draw, dtype=torch.float64)
        vector, norms = vector / vector.norm(), []
        for _ in range(depth):
            vector = w @ vector
            norms.append(float(vector.norm()))
        rates[scale] = (norms[-1] / norms[19]) ** (1 / (depth - 20))
        powers.append(Series(label=f"largest |λ| = {scale:g}", x=x, y=np.array(norms)))
    nets, spread = [], {}
    for label, recurrent in (("recurrent: one matrix", True), ("forward: own matrices", False)):
        tracks = []
        for gain in np.linspace(0.9, 1.1, 5):
            runs = []
            for _ in range(config.pick(5, 20)):

                def fresh(gain: float = gain) -> Tensor:
                    return gain * torch.randn(width, width, generator=draw).double() / width**0.5

                w, track = fresh(), []
                vector = torch.randn(width, generator=draw, dtype=torch.float64)
                vector = vector / vector.norm()
                for _ in range(depth):
                    w = w if recurrent else fresh()
                    vector = w.T @ vector
                    track.append(float(vector.norm().log10()))
                runs.append(track)
            tracks.append(np.array(runs))
        middle = tracks[2]
        spread[label] = float(middle[:, -1].std())
        nets.append(Series(label=label, x=x, y=10 ** middle.mean(0)))
        nets += [Series(label=label, x=x, y=10**run, kind="faint") for run in middle[:6]]
    lengths, by_length = (5, 10, 20, 40, 80), {}
    for kind in ("tanh net", "LSTM"):
        by_length[kind] = [_first_input(kind, t, draw) for t in lengths]
    fall = {k: v[-1] / v[0] for k, v in by_length.items()}
    return FigureOutcome(
        results={
            "powers": Panels(
                label="8.2.5", title="Multiplying again and again", columns=3,
                panels=(
                    Panel(title="‖Wᵗv‖, W fixed", x_label="t", y_label="norm", log_y=True,
                          series=tuple(powers)),
                    Panel(title="gradient, linear nets at gain 1", x_label="layers or time back",
                          y_label="norm", log_y=True, series=tuple(nets)),
                    Panel(title="∂ output / ∂ first input", x_label="length of the sequence",
                          y_label="norm", log_x=True, log_y=True,
                          series=tuple(Series(label=k, x=np.array(lengths, dtype=float),
                                              y=np.array(v), kind="both")
                                       for k, v in by_length.items())),
                ),
                note="Left: V diag(λ)ᵗ V⁻¹ grows or dies at the rate of its largest eigenvalue. "
                "Middle: faint lines are single nets.",
            )
        },
        findings=[
            *(Finding(claim="8.2.5-power", what=f"growth a step of ‖Wᵗv‖ at largest |λ| = {s:g}",
                      measured=r, predicted=s) for s, r in rates.items()),
            *(Finding(claim="8.2.5-forward", what=f"spread of log₁₀ of the gradient norm at depth "
                      f"{depth}, {n}", measured=v) for n, v in spread.items()),
            *(Finding(claim="8.2.5-lstm", what=f"gradient of the first input, length 80 over "
                      f"length 5, {k}", measured=v) for k, v in fall.items()),
        ],
        verdicts=[
            judge("8.2.5-power", all(abs(r / s - 1) < 0.03 for s, r in rates.items()),
                  because="growth a step " + ", ".join(f"{r:.3f} ({s:g})"
                                                       for s, r in rates.items())),
            judge("8.2.5-forward",
                  spread["forward: own matrices"] < spread["recurrent: one matrix"],
                  because=f"over random nets at gain 1 the size of the gradient spreads over "
                  f"{spread['recurrent: one matrix']:.2f} decades (sd) with one matrix and "
                  f"{spread['forward: own matrices']:.2f} with matrices of their own"),
            judge("8.2.5-lstm", fall["LSTM"] > 10 * fall["tanh net"],
                  because=f"from length 5 to 80 the gradient falls to {fall['tanh net']:.1e} of "
                  f"itself in a tanh net, to {fall['LSTM']:.1e} in an LSTM with forget bias 3"),
        ],
        note="Random Gaussian matrices of width 40; sequences of noise.",
    )  # fmt: skip


def _first_input(kind: str, length: int, draw: torch.Generator) -> float:
    """Norm of the gradient of the output by the first input, geometric mean of five nets."""
    norms = []
    for _ in range(5):
        x = 0.5 * torch.randn(1, length, 3, generator=draw, dtype=torch.float64)
        x.requires_grad_()
        if kind == "LSTM":
            net = models.LSTM(models.LSTMConfig(hidden=20, forget_bias=3.0),
                              input_shape=(length, 3), num_outputs=1, generator=draw,
                              dtype=torch.float64)  # fmt: skip
            y = net(x).sum()
        else:
            w = 0.9 * torch.randn(20, 20, generator=draw, dtype=torch.float64) / 20**0.5
            v = torch.randn(20, 3, generator=draw, dtype=torch.float64) / 3**0.5
            h = x.new_zeros(20)
            for step in x[0]:
                h = torch.tanh(w @ h + v @ step)
            y = h.sum() / 20**0.5
        (g,) = torch.autograd.grad(y, x)
        norms.append(float(g[0, 0].norm().log()))
    return math.exp(float(np.mean(norms)))


PAGES = (
    Page(
        name="8.2.4",
        own_network="cliffs are shown on a recurrent net of one unit",
        title="Cliffs and exploding gradients",
        question="What happens where many multiplications make the loss fall off a cliff, and what "
        "does clipping the gradient do about it?",
        claims={
            "8.2.4-steep": "many steps in time pile up into walls in the loss",
            "8.2.4-throws": "at the wall the gradient step throws the parameters far away",
            "8.2.4-clip": "clipping the gradient keeps the step short and the progress",
        },
        make=cliffs,
        code="""
            import torch
            from kobai import Problem, models, seeds
            from kobai.data import load
            from kobai.training import train

            splits = load("digits", limit=60)
            model = models.build("lstm", input_shape=splits.input_shape, num_outputs=10,
                                 generator=seeds.generator(0, "init"))
            problem = Problem(model, "categorical", train=splits.train)
            optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
            history = train(problem, optimizer, epochs=3, batch_size=20, clip_norm=0.5,
                            generator=seeds.generator(0, "order"))
            print(f"loss {history.train_loss[0]:.2f} -> {history.train_loss[-1]:.2f}")
        """,
    ),
    Page(
        name="8.2.5",
        own_network="recurrent and forward nets of equal depth are compared",
        title="Long-term dependencies",
        question="Why is it hard to learn what happened long ago? One matrix multiplied by itself "
        "t times keeps only its largest eigenvalue.",
        claims={
            "8.2.5-power": "in Wᵗ = V diag(λ)ᵗ V⁻¹ eigenvalues below 1 vanish and those above 1 "
            "explode",
            "8.2.5-forward": "forward networks, whose layers have matrices of their own, largely "
            "avoid the problem",
            "8.2.5-lstm": "memory cells carry gradients further (with section 8.7.5)",
        },
        make=dependencies,
        code="""
            import torch
            from kobai import seeds

            w = torch.randn(40, 40, generator=seeds.generator(0, "w")).double() / 40**0.5
            top = torch.linalg.eigvals(w).abs().max()
            for scale in (0.9, 1.1):
                power = torch.linalg.matrix_power(w / top * scale, 50)
                print(f"largest |eigenvalue| {scale}: norm of the 50th power {power.norm():.2g}")
        """,
    ),
)
