"""Sections 8.2.2 and 8.2.3: equal minima by symmetry, saddle points, plateaus."""

import numpy as np
import torch

from kobai import seeds
from kobai.curvature import Hessian
from kobai.optim import Newton, SaddleFreeNewton
from kobai.problem import SURFACES, EmpiricalRisk
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.networks import classifier, per_step, pictures
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


def symmetries(config: Config) -> FigureOutcome:
    """A trained network, its units permuted and rescaled: the loss stays, the way between rises."""
    splits = pictures(config)
    problem = classifier(splits, (24,), seed=config.seed, dtype=torch.float64)
    per_step(problem, torch.optim.Adam(problem.model.parameters(), lr=0.01), config.pick(80, 300),
             128, lambda step, objective: None,
             generator=seeds.generator(config.seed, "order"))  # fmt: skip
    objective, space = problem.objective(), problem.space
    theta = space.theta()
    draw = seeds.generator(config.seed, "symmetry")
    names = space.names  # first weight and bias, then those of the output layer

    def permuted() -> torch.Tensor:
        parts = space.unflatten(theta)
        order = torch.randperm(24, generator=draw)
        return space.flatten({
            names[0]: parts[names[0]][order], names[1]: parts[names[1]][order],
            names[2]: parts[names[2]][:, order], names[3]: parts[names[3]],
        })  # fmt: skip

    def scaled(factor: float) -> torch.Tensor:
        parts = space.unflatten(theta)
        return space.flatten({
            names[0]: parts[names[0]] * factor, names[1]: parts[names[1]] * factor,
            names[2]: parts[names[2]] / factor, names[3]: parts[names[3]],
        })  # fmt: skip

    at_minimum = float(objective.value(theta))
    twins = [permuted() for _ in range(4)]
    t = np.linspace(0, 1, 25)
    between = [
        np.array([float(objective.value(theta + float(a) * (twin - theta))) for a in t])
        for twin in twins
    ]
    factors = np.logspace(-1, 1, 9)
    along = np.array([float(objective.value(scaled(float(f)))) for f in factors])
    spread = max(abs(float(objective.value(twin)) - at_minimum) for twin in twins)
    valley = float(np.abs(along - at_minimum).max())
    hill = float(np.mean([line.max() for line in between]))
    return FigureOutcome(
        results={
            "symmetry": Panels(
                label="8.2.2", title="The same function at other parameters", columns=2,
                panels=(
                    Panel(title="straight way to a permuted copy", x_label="position",
                          y_label="training loss", series=tuple(
                              Series(label=f"permutation {i + 1}", x=t, y=line)
                              for i, line in enumerate(between))),
                    Panel(title="hidden weights × s, output weights / s", x_label="factor s",
                          y_label="training loss", log_x=True,
                          series=(Series(label="rescaled", x=factors, y=along, kind="both"),)),
                ),
                note="Reordering hidden units, or scaling a rectified unit's inputs up and its "
                "outputs down, gives other parameters and the same function.",
            )
        },
        findings=[
            Finding(claim="8.2.2-equal", what="largest difference of the loss over 4 permutations",
                    measured=spread, predicted=0.0),
            Finding(claim="8.2.2-equal", what="largest difference of the loss over the scales",
                    measured=valley, predicted=0.0),
            Finding(claim="8.2.2-equal", what="number of permutations of 24 units, log₁₀",
                    measured=float(np.log10(np.arange(1, 25)).sum())),
            Finding(claim="8.2.2-equal", what="height of the hill between two copies over the loss "
                    "at both", measured=hill / at_minimum),
        ],
        verdicts=[judge("8.2.2-equal", spread < 1e-9, valley < 1e-9,
                        because=f"24! permutations and every scale have the same loss to "
                        f"{max(spread, valley):.0e}; between two of them the loss rises from "
                        f"{at_minimum:.3f} to {hill:.2f}, so they are separate minima")],
        note=f"{config.data}, ReLU network of width 24 after Adam.",
    )  # fmt: skip


def escape(config: Config) -> FigureOutcome:
    """Gradient descent, Newton and saddle-free Newton beside a saddle and a monkey saddle."""
    del config
    results, findings = {}, []
    reached: dict[tuple[str, str], tuple[int, float]] = {}
    for name in ("saddle", "monkey-saddle"):
        surface = SURFACES[name]()
        start = torch.tensor([0.9, 0.02] if name == "saddle" else [0.03, 0.015]).double()
        walks, losses = {}, []
        for label, make, steps in (
            ("gradient descent", lambda m: torch.optim.SGD(m.parameters(), lr=0.1), 80),
            ("Newton", lambda m: Newton(m, damping=1e-6), 80),
            ("saddle-free Newton", lambda m: SaddleFreeNewton(m, damping=0.05), 80),
        ):
            objective = surface.objective(start)
            walks[label] = walk(objective, make(objective.space.module), steps)
            value = values_along(objective, walks[label])
            losses.append(Series(label=label, x=np.arange(len(value), dtype=float),
                                 y=np.maximum(value - surface.minimum, 1e-16)))  # fmt: skip
            done = np.flatnonzero(value - surface.minimum < 1e-3)
            reached[name, label] = (int(done[0]) if len(done) else -1, float(value[-1]))
            findings.append(
                Finding(claim="8.2.3-newton" if label == "Newton" else "8.2.3-saddle-free",
                        what=f"{name}: value where {label} ends (the minimum is "
                        f"{surface.minimum:.3f}, the saddle 0)", measured=float(value[-1]))
            )  # fmt: skip
        low, high = surface.extent
        ground = contours(surface.function, (low, high), (low, high),
                          np.linspace(surface.minimum, -surface.minimum * 2 + 0.2, 16))  # fmt: skip
        part = "motion" if name == "saddle" else "monkey"
        results[part] = Panels(
            label="8.2.3", title=f"Leaving a {name.replace('-', ' ')}", columns=2,
            panels=(
                map_panel("paths", ground, [path(k, w) for k, w in walks.items()]),
                Panel(title="above the minimum", x_label="step", y_label="L − L*", log_y=True,
                      series=tuple(losses)),
            ),
        )  # fmt: skip
    newton = [abs(reached[n, "Newton"][1]) for n in ("saddle", "monkey-saddle")]
    free = [reached[n, "saddle-free Newton"][0] for n in ("saddle", "monkey-saddle")]
    plain = [reached[n, "gradient descent"][0] for n in ("saddle", "monkey-saddle")]
    return FigureOutcome(
        results=results, findings=findings,
        verdicts=[
            judge("8.2.3-newton", newton[0] < 1e-6, newton[1] < 1e-6,
                  because=f"it ends at values {newton[0]:.1e} and {newton[1]:.1e}: on the saddles, "
                  "whose value is 0"),
            judge("8.2.3-gradient", plain[0] > 0, plain[1] > 0,
                  because="steps to within 10⁻³ of the minimum: "
                  f"{_steps(plain[0])} (saddle), {_steps(plain[1])} (monkey saddle)"),
            judge("8.2.3-saddle-free",
                  *(f > 0 and (f < p or p < 0) for f, p in zip(free, plain, strict=True)),
                  because=f"{_steps(free[0])} and {_steps(free[1])} steps against "
                  f"{_steps(plain[0])} and {_steps(plain[1])} of gradient descent"),
        ],
        note="Started close to the ridge that leads into the saddle.",
    )  # fmt: skip


def _steps(count: int) -> str:
    return str(count) if count >= 0 else "more than 80"


def index_along_training(
    config: Config, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Step, loss, share of negative curvature and its size at stages of training a small net."""
    splits = pictures(config, limit=200)
    problem = classifier(splits, (6,), seed=seed, dtype=torch.float64, activation="tanh")
    whole = problem.objective()
    loss, share, least, steps = [], [], [], []
    stages = np.unique(
        np.round(np.logspace(0, np.log10(config.pick(200, 1200)), config.pick(7, 14))).astype(int)
    )

    def watch(step: int, objective: EmpiricalRisk) -> None:
        del objective
        if step + 1 not in stages:
            return
        theta = problem.space.theta()
        values = torch.linalg.eigvalsh(Hessian(whole, theta).dense())
        top = float(values[-1])
        steps.append(step + 1)
        loss.append(float(whole.value(theta)))
        share.append(float((values < -1e-3 * top).double().mean()))
        least.append(-float(values[0]) / top)

    per_step(problem, torch.optim.SGD(problem.model.parameters(), lr=0.3), int(stages[-1]), 200,
             watch, generator=seeds.generator(seed, "order"))  # fmt: skip
    return np.array(steps, dtype=float), np.array(loss), np.array(share), np.array(least)


def saddles(config: Config) -> FigureOutcome:
    """Surfaces and a network on one page."""
    made = escape(config)
    runs = [index_along_training(config, seed) for seed in config.seeds[:3]]
    correlation = [float(np.corrcoef(loss, share)[0, 1]) for _, loss, share, _ in runs]
    names = [f"network {i + 1}" for i in range(len(runs))]
    panels = Panels(
        label="8.2.3", title="Negative curvature while a network learns", columns=2,
        panels=(
            Panel(title="index of the Hessian against the loss", x_label="training loss",
                  y_label="share of negative eigenvalues",
                  series=tuple(Series(label=n, x=loss, y=share, kind="both")
                               for n, (_, loss, share, _) in zip(names, runs, strict=True))),
            Panel(title="strongest negative curvature", x_label="step", log_x=True,
                  y_label="−λ_min / λ_max",
                  series=tuple(Series(label=n, x=steps, y=least, kind="both")
                               for n, (steps, _, _, least) in zip(names, runs, strict=True))),
        ),
        note="Eigenvalues below −λ_max/1000 count as negative.",
    )  # fmt: skip
    first, last = ([float(share[i]) for _, _, share, _ in runs] for i in (0, -1))
    return FigureOutcome(
        results={**made.results, "network": panels},
        findings=[
            *made.findings,
            mean_of("8.2.3-index", "share of negative eigenvalues at the start", first),
            mean_of("8.2.3-index", "share of negative eigenvalues at the end", last),
            mean_of("8.2.3-index", "correlation of the share with the loss", correlation),
        ],
        verdicts=[
            *made.verdicts,
            judge("8.2.3-index", min(correlation) > 0.5,
                  because=f"correlation {np.mean(correlation):.2f} (least {min(correlation):.2f} "
                  f"of {len(runs)} networks): {100 * np.mean(first):.0f} % of the eigenvalues are "
                  f"negative at the start, {100 * np.mean(last):.0f} % at the end (points of runs, "
                  "not critical points)"),
        ],
        note=made.note + f" The networks: {len(runs)} seeds, 200 pictures, tanh, width 6, full "
        "batch.",
    )  # fmt: skip


def plateaus(config: Config) -> tuple[Panels, dict[str, float]]:
    """How long a plateau holds gradient descent, from several distances."""
    del config
    surface = SURFACES["plateau"]()
    series, times = [], {}
    for distance in (1.5, 2.5, 3.5):
        objective = surface.objective(torch.tensor([distance, 0.0]).double())
        optimizer = torch.optim.SGD(objective.space.module.parameters(), lr=0.5)
        values = values_along(objective, walk(objective, optimizer, 300))
        times[f"{distance:g}"] = float(np.argmax(values < 0.5)) if (values < 0.5).any() else -1.0
        series.append(Series(label=f"from distance {distance:g}",
                             x=np.arange(len(values), dtype=float) + 1, y=values))  # fmt: skip
    panel = Panel(title="a well in a plain", x_label="step", y_label="loss", log_x=True,
                  series=tuple(series))  # fmt: skip
    return Panels(
        label="8.2.3", title="On a plateau nothing happens for long", panels=(panel,)
    ), times


def saddles_and_plateaus(config: Config) -> FigureOutcome:
    """The page of section 8.2.3."""
    made = saddles(config)
    panels, times = plateaus(config)
    return FigureOutcome(
        results={**made.results, "plateau": panels},
        findings=[
            *made.findings,
            *(Finding(claim="8.2.3-plateau", what=f"steps down to half the height, from distance "
                      f"{name}", measured=steps) for name, steps in times.items()),
        ],
        verdicts=[
            *made.verdicts,
            judge("8.2.3-plateau", times["3.5"] > 10 * times["1.5"],
                  because="steps to half the height: " + ", ".join(
                      f"{int(steps)} from {name}" for name, steps in times.items())),
        ],
        note=made.note,
    )  # fmt: skip


PAGES = (
    Page(
        name="8.2.2",
        own_network="the symmetries shown are those of one hidden ReLU layer",
        title="Local minima and weight-space symmetry",
        question="A network has astronomically many minima, because units can be exchanged and "
        "rescaled. Are they a problem?",
        claims={
            "8.2.2-equal": "minima that come from weight-space symmetry all have the same "
            "cost, so they do no harm"
        },
        make=symmetries,
        code="""
            import torch
            from kobai import Problem, models, seeds
            from kobai.data import load

            splits = load("digits", limit=200)
            model = models.build(models.MLPConfig(widths=(8,)), input_shape=splits.input_shape,
                                 num_outputs=10, generator=seeds.generator(0, "init"))
            problem = Problem(model, "categorical", train=splits.train)
            objective, space = problem.objective(), problem.space
            theta = space.theta()
            w, b, v, c = space.unflatten(theta).values()
            order = torch.randperm(8, generator=seeds.generator(0, "order"))
            twin = torch.cat([w[order].flatten(), b[order], v[:, order].flatten(), c])
            print(f"here {objective.value(theta):.6f}, permuted {objective.value(twin):.6f}")
            print(f"half way {objective.value((theta + twin) / 2):.6f}")
        """,
    ),
    Page(
        name="8.2.3",
        own_network="every eigenvalue of the Hessian is computed, of a small network",
        title="Saddle points, plateaus and other flat regions",
        question="Where the gradient vanishes, some directions lead down and others up. Who "
        "escapes, who is caught, and how common is negative curvature in training?",
        claims={
            "8.2.3-newton": "Newton's method without safeguards jumps to the saddle point",
            "8.2.3-gradient": "gradient descent escapes saddle points",
            "8.2.3-saddle-free": "saddle-free Newton escapes, and faster",
            "8.2.3-index": "the costlier the region, the more directions of negative curvature",
            "8.2.3-plateau": "on a plateau the gradient says next to nothing for a long time",
        },
        make=saddles_and_plateaus,
        code="""
            from kobai.optim import Newton, SaddleFreeNewton
            from kobai.problem import SURFACES
            import torch

            surface = SURFACES["saddle"]()
            for kind in (Newton, SaddleFreeNewton):
                objective = surface.objective(torch.tensor([0.9, 0.02]).double())
                optimizer = kind(objective.space.module, damping=0.01)
                for _ in range(20):
                    optimizer.step(objective)
                theta = objective.theta()
                print(kind.__name__, theta.tolist(), "distance to a minimum",
                      f"{surface.distance(theta):.2g}")
        """,
    ),
)
