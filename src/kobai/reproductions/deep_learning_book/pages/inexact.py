"""Sections 8.2.6 to 8.2.8: inexact gradients, local against global structure, limits."""

from typing import Any

import numpy as np
import torch

from kobai import seeds
from kobai.optim import NonlinearCG
from kobai.problem import SURFACES, Analytic
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


def inexact(config: Config) -> FigureOutcome:
    """Gradient descent whose gradients carry noise or a bias, on a quadratic."""
    draw = seeds.generator(config.seed, "noise")
    steps, rate, runs = 300, 0.05, 100
    curvature = torch.tensor([1.0, 10.0]).double()
    noise, bias = 2.0, torch.tensor([0.5, 0.0]).double()
    curves, ends = [], {}
    for label, sd, shift in (("exact", 0.0, 0.0), ("noise", noise, 0.0), ("bias", 0.0, 1.0)):
        theta, track = torch.full((runs, 2), 1.0).double(), []
        for _ in range(steps):
            track.append(float(0.5 * (curvature * theta.square()).sum(1).mean()))
            error = sd * torch.randn(runs, 2, generator=draw).double() + shift * bias
            theta = theta - rate * (curvature * theta + error)
        curves.append(Series(label=label, x=np.arange(steps, dtype=float),
                             y=np.maximum(track, 1e-14)))  # fmt: skip
        ends[label] = float(np.mean(track[-100:]))
    # The variance of θ' = (1 − εh)θ − εn tends to εσ²/(h(2 − εh)); a bias b moves θ by b/h.
    floor = {
        "noise": float((0.5 * rate * noise**2 / (2 - rate * curvature)).sum()),
        "bias": float((0.5 * bias.square() / curvature).sum()),
    }
    rates, settled = (0.01, 0.03, 0.1), []
    for slow in rates:
        theta = torch.zeros(2000, 2).double()
        for _ in range(400):
            theta = theta - slow * (
                curvature * theta + noise * torch.randn(2000, 2, generator=draw).double()
            )
        settled.append(float(0.5 * (curvature * theta.square()).sum(1).mean()))
    theory = [float((0.5 * r * noise**2 / (2 - r * curvature)).sum()) for r in rates]
    return FigureOutcome(
        results={
            "errors": Panels(
                label="8.2.6", title="Gradients with an error", columns=2,
                panels=(
                    Panel(title="quadratic, condition 10, rate 0.05", x_label="step",
                          y_label="mean loss of 100 runs", log_y=True, series=tuple(curves)),
                    Panel(title="where noisy gradients settle", x_label="learning rate",
                          y_label="loss", log_x=True, log_y=True,
                          series=(Series(label="noise", x=np.array(rates), y=np.array(settled),
                                         kind="points"),
                                  Series(label="theory", x=np.array(rates), y=np.array(theory),
                                         kind="theory"))),
                ),
            )
        },
        findings=[
            Finding(claim="8.2.6-noise", what="loss where noise (sd 2) settles at rate 0.05",
                    measured=ends["noise"], predicted=floor["noise"]),
            Finding(claim="8.2.6-bias", what="loss where a bias (0.5, 0) settles",
                    measured=ends["bias"], predicted=floor["bias"]),
            *(Finding(claim="8.2.6-noise", what=f"loss where noise settles at rate {r:g}",
                      measured=m, predicted=p)
              for r, m, p in zip(rates, settled, theory, strict=True)),
        ],
        verdicts=[
            judge("8.2.6-noise", abs(ends["noise"] / floor["noise"] - 1) < 0.1,
                  settled[0] < settled[-1],
                  because=f"the loss stays at {ends['noise']:.3f} (theory {floor['noise']:.3f}) "
                  "and a smaller rate lowers it"),
            judge("8.2.6-bias", abs(ends["bias"] / floor["bias"] - 1) < 0.1,
                  because=f"the loss stays at {ends['bias']:.3f} (theory {floor['bias']:.3f}) at "
                  "every rate: descent finds the minimum of another function"),
        ],
        note="A hundred runs at once.",
    )  # fmt: skip


def hill(theta: torch.Tensor) -> torch.Tensor:
    """A tilted plain with a hill between the start and the valley behind it."""
    x, y = theta[0], theta[1]
    top = 2.2 * torch.exp(-((x - 0.1).square() + y.square()) / 0.8)
    return top + 0.08 * ((x - 3.0).square() + 0.6 * y.square())


def structure(config: Config) -> FigureOutcome:
    """A hill in the way, and which starts of Himmelblau's and Rastrigin's functions end well."""
    runs, starts = {}, {"above": (-2.0, 0.6), "dead centre": (-2.0, 0.0), "good start": (1.4, 0.9)}
    for name, start in starts.items():
        objective = Analytic(hill, torch.tensor(start).double())
        runs[name] = walk(objective, torch.optim.SGD(objective.space.module.parameters(), lr=0.25),
                          200)  # fmt: skip
    straight = {
        n: float(np.linalg.norm(np.diff(w, axis=0), axis=1).sum() / np.linalg.norm(w[-1] - w[0]))
        for n, w in runs.items()
    }
    objective = Analytic(hill, torch.tensor([-2.0, 0.6]).double())
    losses = {n: values_along(objective, w) for n, w in runs.items()}
    away = float(np.linalg.norm(runs["dead centre"][-1] - np.array([3.0, 0.0])))
    g = objective.grad(torch.tensor([-1.2, 0.6]).double())
    towards = torch.tensor([4.2, -0.6]).double()
    angle = float(torch.rad2deg(torch.acos(-(g @ towards) / (g.norm() * towards.norm()))))
    draw, size = seeds.generator(config.seed, "starts"), config.pick(40, 120)
    surface = SURFACES["rastrigin"]()
    reached = {}
    for radius in (0.3, 1.0, 2.0, 4.0):
        good = 0
        for _ in range(size):
            start = radius * (2 * torch.rand(2, generator=draw).double() - 1)
            point = surface.objective(start)
            for _ in range(40):
                point.space.assign(point.theta() - 0.003 * point.grad(point.theta()))
            good += surface.distance(point.theta()) < 0.1
        reached[radius] = good / size
    ground = contours(hill, (-2.6, 3.8), (-2.2, 2.2), np.linspace(0.05, 3.0, 16))
    return FigureOutcome(
        results={
            "motion": Panels(
                label="8.2.7", title="A hill between here and there", columns=2,
                panels=(
                    map_panel("gradient descent", ground, [path(n, w) for n, w in runs.items()]),
                    Panel(title="loss", x_label="step", y_label="loss", log_y=True,
                          series=tuple(Series(label=n, x=np.arange(len(v), dtype=float), y=v)
                                       for n, v in losses.items())),
                ),
            ),
            "starts": Panels(
                label="8.2.7", title="Where one starts decides where one ends", panels=(
                    Panel(title="Rastrigin's function", x_label="half-width of starts",
                          y_label="share that finds the global minimum", percent=True,
                          series=(Series(label="gradient descent", x=np.array(list(reached)),
                                         y=np.array(list(reached.values())), kind="both"),)),
                ),
            ),
        },
        findings=[
            *(Finding(claim="8.2.7-detour", what=f"length of the path over the distance, {n}",
                      measured=v) for n, v in straight.items()),
            Finding(claim="8.2.7-detour", what="angle between −g and the minimum before the hill "
                    "(degrees)", measured=angle),
            *(Finding(claim="8.2.7-start", what=f"share of starts within ±{r:g} that find the "
                      "global minimum", measured=v) for r, v in reached.items()),
        ],
        verdicts=[
            judge("8.2.7-detour", straight["above"] > 1.1 * straight["good start"], away > 1,
                  because=f"the path around the hill is {straight['above']:.2f} times the "
                  f"distance, {straight['good start']:.2f} from the good start; head on it stops "
                  f"{away:.1f} short of the minimum"),
            judge("8.2.7-start", reached[0.3] > 0.9, reached[4.0] < 0.5,
                  because=f"{100 * reached[0.3]:.0f} % of starts within ±0.3 find the global "
                  f"minimum, {100 * reached[4.0]:.0f} % within ±4"),
        ],
        note="Local steps everywhere go downhill by the steepest way; that is all they know.",
    )  # fmt: skip


def limits(config: Config) -> FigureOutcome:
    """A worst case that no method which follows gradients escapes, beside what it needs in use.

    The quadratic of Nesterov (2004, Introductory Lectures on Convex Optimization, §2.1.2): after k
    gradients any iterate in their span is zero beyond its first k coordinates, where the least
    value is L/8 (1/(k + 1) − 1) while the minimum in n coordinates is L/8 (1/(n + 1) − 1).
    """
    size = config.pick(61, 201)
    matrix = 2 * torch.eye(size).double()
    matrix -= torch.diag(torch.ones(size - 1).double(), 1)
    matrix -= torch.diag(torch.ones(size - 1).double(), -1)
    pull = torch.zeros(size).double()
    pull[0] = 1.0

    def worst(theta: torch.Tensor) -> torch.Tensor:
        return 0.25 * (0.5 * theta @ (matrix @ theta) - theta @ pull)

    best = torch.linalg.solve(matrix, pull)
    lowest = float(worst(best))
    start = torch.zeros(size).double()
    steps = config.pick(30, 100)
    tracks = {}
    settings: dict[str, dict[str, Any]] = {
        "gradient descent": {"lr": 1.0},
        "Nesterov": {"lr": 1.0, "momentum": 0.97, "nesterov": True},
    }
    for name, arguments in settings.items():
        objective = Analytic(worst, start)
        tracks[name] = values_along(objective, walk(
            objective, torch.optim.SGD(objective.space.module.parameters(), **arguments), steps)
        ) - lowest  # fmt: skip
    objective = Analytic(worst, start)
    tracks["conjugate gradients"] = values_along(objective, walk(
        objective, NonlinearCG(objective.space.module, search="exact"), steps)
    ) - lowest  # fmt: skip
    k = np.arange(1, steps + 1, dtype=float)
    bound = (1 / (k + 1) - 1 / (size + 1)) / 8
    least = min(float((v[1:] / bound[: len(v) - 1]).min()) for v in tracks.values())
    return FigureOutcome(
        results={
            "bound": Panels(
                label="8.2.8", title="A bound that no first-order method passes", panels=(
                    Panel(title=f"the worst quadratic in {size} variables", x_label="gradients",
                          y_label="L − L*", log_x=True, log_y=True,
                          series=(*(Series(label=n, x=np.arange(1, len(v), dtype=float), y=v[1:])
                                    for n, v in tracks.items()),
                                  Series(label="lower bound", x=k, y=bound, kind="theory"))),
                ),
            )
        },
        findings=[
            Finding(claim="8.2.8-bound", what="least of (L − L*) / bound over methods and steps",
                    measured=least),
        ],
        verdicts=[
            judge("8.2.8-bound", least >= 1 - 1e-6,
                  because=f"no method comes below; the closest is {least:.4f} times the bound"),
        ],
        note="L = 1; after Nesterov (2004), §2.1.2. Such a bound is about the worst function of a "
        "class and says little about the loss one has: the chapter holds that limits of this kind "
        "hardly matter in use, and no page here runs into one.",
    )  # fmt: skip


PAGES = (
    Page(
        name="8.2.6",
        own_network="the functions here are formulas",
        title="Inexact gradients",
        question="Minibatches give noisy gradients, approximations biased ones. Where does descent "
        "end then?",
        claims={
            "8.2.6-noise": "noise keeps descent at a distance from the minimum that grows with the "
            "rate",
            "8.2.6-bias": "a bias leads to the minimum of another function, whatever the rate",
        },
        make=inexact,
        code="""
            import torch
            from kobai import seeds

            draw, theta = seeds.generator(0, "noise"), torch.ones(10_000).double()
            for _ in range(200):
                theta = theta - 0.1 * (theta + torch.randn(10_000, generator=draw))
            print(f"variance {theta.var():.4f}, theory {0.1 / (2 - 0.1):.4f}")
        """,
    ),
    Page(
        name="8.2.7",
        own_network="the functions here are formulas",
        title="Local against global structure",
        question="Every step goes downhill by the steepest way. Does that lead to where the loss "
        "is low?",
        claims={
            "8.2.7-detour": "the locally best direction need not point to distant regions of lower "
            "cost: paths circle hills, or stop before them",
            "8.2.7-start": "a good initial point makes the difference",
        },
        make=structure,
        code="""
            import torch
            from kobai.problem import SURFACES

            surface = SURFACES["himmelblau"]()
            for start in ([0.0, 0.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]):
                objective = surface.objective(torch.tensor(start).double())
                optimizer = torch.optim.SGD(objective.space.module.parameters(), lr=0.01)
                for _ in range(200):
                    optimizer.step(objective)
                print(start, "->", [round(v, 3) for v in objective.theta().tolist()])
        """,
    ),
    Page(
        name="8.2.8",
        own_network="the functions here are formulas",
        title="Theoretical limits",
        question="There are bounds on what any optimization algorithm can do. Do they matter?",
        claims={
            "8.2.8-bound": "no method that follows gradients beats the lower bound",
        },
        make=limits,
        code="""
            import torch
            from kobai.problem.surfaces import quadratic
            from kobai.optim import NonlinearCG
            from kobai import seeds

            surface = quadratic(1000.0, 30, generator=seeds.generator(0, "axes"))
            objective = surface.objective()
            optimizer = NonlinearCG(objective.space.module, search="exact")
            for step in range(31):
                loss = optimizer.step(objective)
                if step % 10 == 0:
                    print(f"after {step} gradients: {float(loss):.2g}")
        """,
    ),
)
