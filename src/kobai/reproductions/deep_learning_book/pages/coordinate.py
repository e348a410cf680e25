"""Sections 8.7.2 and 8.7.3: coordinate descent; Polyak averaging."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from kobai import seeds
from kobai.optim import CoordinateDescent, SteepestDescent
from kobai.optim.second_order.coordinate import lasso
from kobai.problem import Analytic, ParameterSpace
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.networks import classifier, endless, pictures
from kobai.reproductions.deep_learning_book.page import Page, judge, mean_of
from kobai.reproductions.deep_learning_book.surface_paths import (
    contours,
    map_panel,
    path,
    values_along,
    walk,
)
from kobai.reproductions.figures import FigureOutcome
from kobai.results import Finding, Panel, Panels, Series
from kobai.training import PolyakAverage


def coupled(alpha: float):
    """The chapter's second example, (x₁ − x₂)² + α(x₁² + x₂²)."""

    def function(theta: Tensor) -> Tensor:
        return (theta[0] - theta[1]).square() + alpha * theta.square().sum()

    return function


class Codes(nn.Module):
    """Dictionary W (k, d) and codes H (k, n) of sparse coding.

    Args:
        atoms: k.
        dimension: d.
        examples: n.
        generator: Draws both.
    """

    def __init__(
        self, atoms: int, dimension: int, examples: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(atoms, dimension, generator=generator).double())
        self.H = nn.Parameter(torch.randn(atoms, examples, generator=generator).double())


def sparse_coding(config: Config) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Σ|H| + Σ(X − WᵀH)² + μ‖W‖² by alternating exact blocks and by steepest descent.

    Without the last term there is no minimum: H/c and cW fit as well at a lower price.

    Returns:
        Method → (objective after each step, share of zero codes after each step).
    """
    mu, atoms, count = 0.1, 5, config.pick(60, 150)
    draw = seeds.generator(config.seed, "codes")
    truth = torch.randn(atoms, 8, generator=draw).double()
    mask = torch.rand(atoms, count, generator=draw) < 0.3
    x = truth.T @ (torch.randn(atoms, count, generator=draw).double() * mask)
    found = {}
    for method in ("alternating blocks", "steepest descent"):
        model = Codes(atoms, 8, count, seeds.generator(config.seed, "start"))
        space = ParameterSpace(model)

        def formula(theta: Tensor, space: ParameterSpace = space) -> Tensor:
            parts = space.unflatten(theta)
            w, h = parts["W"], parts["H"]
            return h.abs().sum() + (x - w.T @ h).square().sum() + mu * w.square().sum()

        objective = Analytic(formula, model)

        def best_w(theta: Tensor, space: ParameterSpace = space) -> Tensor:
            h = space.unflatten(theta)["H"]
            return torch.linalg.solve(h @ h.T + mu * torch.eye(atoms).double(), h @ x.T)

        def best_h(theta: Tensor, space: ParameterSpace = space) -> Tensor:
            parts = space.unflatten(theta)
            w = parts["W"]
            return lasso(2 * w @ w.T, 2 * w @ x, 1.0, start=parts["H"], max_sweeps=200)

        optimizer: torch.optim.Optimizer = (
            CoordinateDescent(model, blocks={"H": ["H"], "W": ["W"]},
                              minimizers={"W": best_w, "H": best_h})
            if method == "alternating blocks" else SteepestDescent(model)
        )  # fmt: skip
        values, zeros = [], []
        for _ in range(config.pick(40, 100)):
            values.append(float(objective.value(objective.theta())))
            zeros.append(float((model.H.detach().abs() < 1e-9).double().mean()))
            optimizer.step(objective)  # pyright: ignore[reportArgumentType]
        found[method] = (np.array(values), np.array(zeros))
    return found


def coordinates(config: Config) -> FigureOutcome:
    """Both examples of the chapter."""
    start = torch.tensor([2.0, -1.0]).double()
    walks, rates, alphas = {}, {}, (0.05, 0.5, 2.0)
    for alpha in alphas:
        objective = Analytic(coupled(alpha), start)
        points = walk(objective, CoordinateDescent(objective.space.module), 60)
        walks[alpha] = points
        # x₁ = x₂/(1 + α), then x₂ = x₁/(1 + α): each sweep divides by (1 + α)².
        rates[alpha] = (float(points[8, 1] / points[4, 1])) ** 0.5
    objective = Analytic(coupled(0.05), start)
    plain = walk(objective, torch.optim.SGD(objective.space.module.parameters(), lr=0.45), 60)
    ground = contours(coupled(0.05), (-1.6, 2.4), (-1.6, 2.4), np.linspace(0.05, 8, 14))
    coding = sparse_coding(config)
    values, zeros = coding["alternating blocks"]
    rival = coding["steepest descent"][0]
    rises = float(np.diff(values).max())
    return FigureOutcome(
        results={
            "motion": Panels(
                label="8.7.2", title="(x₁ − x₂)² + α(x₁² + x₂²)", columns=2,
                panels=(
                    map_panel("α = 0.05", ground,
                              [path("coordinate descent", walks[0.05]),
                               path("gradient descent", plain)], names=("x₁", "x₂")),
                    Panel(title="coordinate descent", x_label="step", y_label="value", log_y=True,
                          series=tuple(
                              Series(label=f"α = {a:g}", x=np.arange(len(w), dtype=float),
                                     y=np.maximum(values_along(Analytic(coupled(a), start), w),
                                                  1e-16)) for a, w in walks.items())),
                ),
                note="A small α couples the variables: each step can only follow the diagonal "
                "valley by stairs.",
            ),
            "coding": Panels(
                label="8.7.2", title="Sparse coding: H, then W, then H again", columns=2,
                panels=(
                    Panel(title="objective", x_label="step", y_label="value", log_y=True,
                          series=tuple(Series(label=n, x=np.arange(len(v), dtype=float), y=v)
                                       for n, (v, _) in coding.items())),
                    Panel(title="codes that are exactly 0", x_label="step", y_label="share",
                          percent=True,
                          series=tuple(Series(label=n, x=np.arange(len(z), dtype=float), y=z)
                                       for n, (_, z) in coding.items())),
                ),
            ),
        },
        findings=[
            *(Finding(claim="8.7.2-coupled", what=f"factor a sweep at α = {a:g}", measured=r,
                      predicted=1 / (1 + a) ** 2) for a, r in rates.items()),
            Finding(claim="8.7.2-coding", what="sparse coding: value at the end, alternating",
                    measured=float(values[-1])),
            Finding(claim="8.7.2-coding", what="sparse coding: value at the end, steepest descent",
                    measured=float(rival[-1])),
            Finding(claim="8.7.2-coding", what="largest rise of the value in a step",
                    measured=rises),
            Finding(claim="8.7.2-coding", what="share of zero codes at the end",
                    measured=float(zeros[-1])),
        ],
        verdicts=[
            judge("8.7.2-coupled", all(abs(r * (1 + a) ** 2 - 1) < 1e-6 for a, r in rates.items()),
                  because="each sweep divides by (1 + α)²: " + ", ".join(
                      f"{r:.4f} (α = {a:g})" for a, r in rates.items())
                  + "; slow where the variables depend on each other"),
            judge("8.7.2-coding", rises < 1e-9 * float(values[0]), values[-1] < rival[-1],
                  because=f"every step lowers the value; at the end {values[-1]:.1f} against "
                  f"{rival[-1]:.1f} of steepest descent after as many steps, with "
                  f"{100 * zeros[-1]:.0f} % of the codes exactly 0"),
        ],
        note="As printed the sparse-coding cost has no minimum (H/c and cW cost less and less); a "
        "penalty 0.1 ‖W‖² is added.",
    )  # fmt: skip


def averaging(config: Config) -> FigureOutcome:
    """Iterates that swing across a valley, and their mean; a network at a constant rate."""
    draw = seeds.generator(config.seed, "noise")
    curvature = torch.tensor([1.0, 20.0]).double()

    def valley(theta: Tensor) -> Tensor:
        return 0.5 * (curvature * theta.square()).sum()

    theta, points, means = torch.tensor([-1.5, 0.5]).double(), [], []
    mean, ema, emas = torch.zeros(2).double(), torch.tensor([-1.5, 0.5]).double(), []
    steps = 400
    for t in range(1, steps + 1):
        noise = 2.0 * torch.randn(2, generator=draw).double()
        theta = theta - 0.08 * (curvature * theta + noise)
        mean = mean - (mean - theta) / t
        ema = 0.95 * ema + 0.05 * theta
        points.append(theta.clone())
        means.append(mean.clone())
        emas.append(ema.clone())
    tracks = {
        "iterates": torch.stack(points).numpy(), "running mean": torch.stack(means).numpy(),
        "exponential mean, 0.95": torch.stack(emas).numpy(),
    }  # fmt: skip
    objective = Analytic(valley, torch.zeros(2).double())
    values = {n: values_along(objective, w) for n, w in tracks.items()}
    late = {n: float(v[-100:].mean()) for n, v in values.items()}
    ground = contours(valley, (-1.7, 0.8), (-0.7, 0.7), np.logspace(-1.5, 0.8, 10))
    splits = pictures(config)
    ends: dict[str, list[float]] = {"last iterate": [], "running mean": [], "exponential mean": []}
    for seed in config.seeds:
        problem = classifier(splits, (32,), seed=seed, model=config.model)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.5)
        count = config.pick(200, 600)
        kinds = {
            "running mean": PolyakAverage(problem.model, start=count // 4),
            "exponential mean": PolyakAverage(problem.model, decay=0.98),
        }
        batches = endless(problem, 8, generator=seeds.generator(seed, "order"))
        for _ in range(count):
            optimizer.step(problem.objective(next(batches)))  # pyright: ignore
            for average in kinds.values():
                average.update(problem.model)
        test = problem.objective(split="test")
        ends["last iterate"].append(test.metrics()["loss"])
        for name, average in kinds.items():
            with average.swapped_into(problem.model):
                ends[name].append(test.metrics()["loss"])
    gain = {
        n: np.array(ends["last iterate"]) - np.array(ends[n])
        for n in ("running mean", "exponential mean")
    }
    error = {n: float(g.std(ddof=1) / math.sqrt(len(g))) for n, g in gain.items()}
    return FigureOutcome(
        results={
            "motion": Panels(
                label="8.7.3", title="Averaging in a valley", columns=2,
                panels=(
                    map_panel("noisy gradients, constant rate", ground,
                              [path(n, w[:150], kind="line") for n, w in tracks.items()]),
                    Panel(title="loss", x_label="step", y_label="loss", log_y=True, log_x=True,
                          series=tuple(Series(label=n, x=np.arange(1, steps + 1, dtype=float), y=v)
                                       for n, v in values.items())),
                ),
            ),
        },
        findings=[
            *(Finding(claim="8.7.3-valley", what=f"mean loss of the last 100, {n}", measured=v)
              for n, v in late.items()),
            *(mean_of("8.7.3-network", f"network: test loss, {n}", v) for n, v in ends.items()),
        ],
        verdicts=[
            judge("8.7.3-valley", late["running mean"] < 0.2 * late["iterates"],
                  late["exponential mean, 0.95"] < 0.5 * late["iterates"],
                  because="loss " + ", ".join(f"{v:.4f} ({n})" for n, v in late.items())),
            judge("8.7.3-network", *(float(g.mean()) > 2 * error[n] for n, g in gain.items()),
                  because="test loss falls by " + ", ".join(
                      f"{g.mean():.3f} ± {error[n]:.3f} ({n})" for n, g in gain.items())),
        ],
        note=f"The network: {config.data}, {config.model or 'width 32'}, batches of 8 at rate "
        f"0.5; {len(config.seeds)} seeds.",
    )  # fmt: skip


PAGES = (
    Page(
        name="8.7.2",
        own_network="the functions here are formulas",
        title="Coordinate descent",
        question="What if one minimises over one variable, or one block of them, at a time?",
        claims={
            "8.7.2-coupled": "it is slow where the value of a variable decides on that of another",
            "8.7.2-coding": "it is good where the variables fall into blocks that are easy by "
            "themselves, as in sparse coding",
        },
        make=coordinates,
        code="""
            import torch
            from kobai.optim import CoordinateDescent
            from kobai.problem import Analytic

            for alpha in (0.05, 2.0):
                f = lambda x: (x[0] - x[1]).square() + alpha * x.square().sum()
                objective = Analytic(f, torch.tensor([2.0, -1.0]).double())
                optimizer = CoordinateDescent(objective.space.module)
                for _ in range(20):
                    value = optimizer.step(objective)
                print(f"alpha {alpha}: value after 20 steps {float(value):.1e}")
        """,
    ),
    Page(
        name="8.7.3",
        title="Polyak averaging",
        question="Iterates swing from side to side of a valley. Is their mean at its bottom?",
        claims={
            "8.7.3-valley": "the mean of the iterates lies near the floor of the valley",
            "8.7.3-network": "for networks, a mean over recent iterates is better than the last",
        },
        make=averaging,
        code="""
            import torch
            from kobai import Problem, models, seeds
            from kobai.data import load
            from kobai.training import PolyakAverage

            splits = load("digits", limit=500)
            model = models.build("mlp", input_shape=splits.input_shape, num_outputs=10,
                                 generator=seeds.generator(0, "init"))
            problem = Problem(model, "categorical", train=splits.train, test=splits.test)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
            average, draw = PolyakAverage(model, decay=0.95), seeds.generator(0, "order")
            for epoch in range(5):
                for batch in problem.minibatches(8, generator=draw):
                    optimizer.step(problem.objective(batch))
                    average.update(model)
            print("last    ", problem.objective(split="test").metrics())
            with average.swapped_into(model):
                print("averaged", problem.objective(split="test").metrics())
        """,
    ),
)
