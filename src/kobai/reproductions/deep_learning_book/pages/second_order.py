"""Section 8.6: Newton's method, conjugate gradients, BFGS."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import nn

from kobai import data, models, seeds
from kobai.optim import BFGS, Newton, NonlinearCG, SteepestDescent, StrongWolfe
from kobai.problem import SURFACES, Objective, Problem
from kobai.problem.surfaces import quadratic
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

_Make = Callable[[nn.Module], torch.optim.Optimizer]
_METHODS: dict[str, _Make] = {
    "steepest descent": lambda m: SteepestDescent(m, search="exact"),
    "nonlinear CG": lambda m: NonlinearCG(m, search=StrongWolfe(curvature=0.1)),
    "BFGS": lambda m: BFGS(m),
    "L-BFGS": lambda m: torch.optim.LBFGS(m.parameters(), max_iter=1, max_eval=40, history_size=10,
                                          line_search_fn="strong_wolfe"),
    "Newton": lambda m: Newton(m),
}  # fmt: skip


def newton(config: Config) -> FigureOutcome:
    """One step on a quadratic; damping at negative curvature; the cost of a step."""
    landed, sizes = {}, (2, 10, 50)
    for size in sizes:
        surface = quadratic(1000.0, size, generator=seeds.generator(config.seed, "axes"))
        objective = surface.objective()
        Newton(objective.space.module, damping=0.0).step(objective)
        landed[size] = surface.distance(objective.theta())
    surface = SURFACES["saddle"]()
    start = torch.tensor([1.0, 0.3]).double()
    runs = {}
    cases: dict[str, float | Literal["auto"]] = {
        "α = 0": 0.0, "α = 1.5": 1.5, "α = 6": 6.0, "adaptive": "auto",
    }  # fmt: skip
    for label, damping in cases.items():
        objective = surface.objective(start)
        runs[label] = walk(objective, Newton(objective.space.module, damping=damping), 40)
    values = {k: values_along(surface.objective(), w) for k, w in runs.items()}
    ground = contours(surface.function, (-1.3, 1.3), (-1.3, 1.3), np.linspace(-0.25, 1.0, 14))
    count = {k: _until(v, surface.minimum + 1e-6) for k, v in values.items()}
    dimension = np.array([50, 100, 200, 400, 800]) if config.scale == "full" else np.array(
        [50, 100, 200, 400])  # fmt: skip
    seconds = []
    for size in dimension:
        matrix = torch.eye(int(size)).double() * 2
        vector = torch.ones(int(size), 1).double()
        times = []
        for _ in range(5):
            began = time.process_time()
            torch.cholesky_solve(vector, torch.linalg.cholesky(matrix))
            times.append(time.process_time() - began)
        seconds.append(float(np.median(times)))
    slope = float(np.polyfit(np.log(dimension[-2:]), np.log(seconds[-2:]), 1)[0])
    return FigureOutcome(
        results={
            "motion": Panels(
                label="8.6.1", title="Damping where the curvature is negative", columns=2,
                panels=(
                    map_panel("½x² + ¼y⁴ − ½y² from (1, 0.3)", ground,
                              [path(k, w) for k, w in runs.items()], names=("x", "y")),
                    Panel(title="above the minimum", x_label="step", y_label="L − L*", log_y=True,
                          series=tuple(
                              Series(label=k, x=np.arange(len(v), dtype=float),
                                     y=np.maximum(v + 0.25, 1e-16)) for k, v in values.items())),
                ),
                note="H + αI must be positive definite: with α = 0 the step goes to the saddle.",
            ),
            "cost": Panels(
                label="8.6.1", title="Why not for millions of parameters", panels=(
                    Panel(title="Cholesky solve of a k × k system", x_label="parameters k",
                          y_label="seconds", log_x=True, log_y=True,
                          series=(Series(label="measured", x=dimension.astype(float),
                                         y=np.array(seconds), kind="both"),)),
                ),
            ),
        },
        findings=[
            *(Finding(claim="8.6.1-one", what=f"distance to the minimum after one step, P = {k}, "
                      "condition 1000", measured=v, predicted=0.0) for k, v in landed.items()),
            *(Finding(claim="8.6.1-damping", what=f"steps to the minimum, {k} ",
                      measured=float(v) if v >= 0 else float("nan")) for k, v in count.items()),
            Finding(claim="8.6.1-cost", what="exponent of the time of a solve", measured=slope,
                    predicted=3.0),
        ],
        verdicts=[
            judge("8.6.1-one", all(v < 1e-8 for v in landed.values()),
                  because=f"largest distance left {max(landed.values()):.0e}"),
            judge("8.6.1-damping", count["α = 0"] < 0, count["α = 1.5"] > 0, count["adaptive"] > 0,
                  because=f"α = 0 ends on the saddle; α = 1.5 needs {count['α = 1.5']} steps, "
                  f"α = 6 {count['α = 6'] if count['α = 6'] > 0 else 'more than 40'}, the "
                  f"adaptive rule {count['adaptive']}"),
            judge("8.6.1-cost", slope > 2,
                  because=f"between k = {dimension[-2]} and {dimension[-1]} time grows as "
                  f"k^{slope:.1f}; for 10⁶ parameters the matrix alone has 8 TB"),
        ],
        note="Small matrices are dominated by overhead, so the exponent is below 3 here.",
    )  # fmt: skip


def _until(values: np.ndarray, level: float) -> int:
    return int(np.argmax(values <= level)) if (values <= level).any() else -1


def conjugate(config: Config) -> FigureOutcome:
    """The zig-zag of steepest descent and conjugate directions on a quadratic."""
    surface = quadratic(10.0)
    start = torch.tensor([-1.0, 0.1]).double()
    runs, angles = {}, []
    for name, make in (
        ("steepest descent", lambda m: SteepestDescent(m, search="exact")),
        ("conjugate gradients", lambda m: NonlinearCG(m, search="exact")),
    ):
        objective = surface.objective(start)
        runs[name] = walk(objective, make(objective.space.module), 25)
    moves = np.diff(runs["steepest descent"], axis=0)[:15]
    for a, b in pairwise(moves):
        angles.append(abs(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))))
    ground = contours(surface.function, (-1.2, 0.4), (-0.35, 0.35), np.logspace(-2.5, 0.3, 12))
    conditions, steps = (
        (3.0, 10.0, 100.0, 1000.0),
        {"steepest descent": [], "conjugate gradients": []},
    )
    for condition in conditions:
        hard = quadratic(condition, 20, generator=seeds.generator(config.seed, "axes"))
        for name, search in (
            ("steepest descent", SteepestDescent),
            ("conjugate gradients", NonlinearCG),
        ):
            objective = hard.objective()
            begin = float(objective.value(objective.theta()))
            optimizer, count = search(objective.space.module, search="exact"), 0
            limit = config.pick(1500, 6000)
            while float(optimizer.step(objective)) > 1e-6 * begin and count < limit:
                count += 1
            steps[name].append(float(count))
    variants = {}
    for beta in ("polak-ribiere", "fletcher-reeves", "hestenes-stiefel", "dai-yuan"):
        objective = quadratic(100.0, 6).objective()
        optimizer = NonlinearCG(objective.space.module, beta=beta, search="exact")
        variants[beta] = walk(objective, optimizer, 4)
    apart = max(float(np.abs(v - variants["polak-ribiere"]).max()) for v in variants.values())
    return FigureOutcome(
        results={
            "motion": Panels(
                label="8.6.2", title="Zig-zag and conjugate directions", columns=2,
                panels=(
                    map_panel("condition number 10", ground, [path(k, w) for k, w in runs.items()]),
                    Panel(title="steps to 10⁻⁶ of the loss, P = 20", x_label="condition number",
                          y_label="steps", log_x=True, log_y=True,
                          series=tuple(Series(label=k, x=np.array(conditions), y=np.array(v),
                                              kind="both") for k, v in steps.items())),
                ),
            )
        },
        findings=[
            Finding(claim="8.6.2-zigzag", what="largest |cosine| between successive steps of "
                    "steepest descent", measured=max(angles), predicted=0.0),
            Finding(claim="8.6.2-terminates", what="distance to the minimum after 2 conjugate "
                    "steps, P = 2", measured=float(np.linalg.norm(runs["conjugate gradients"][2])),
                    predicted=0.0),
            *(Finding(claim="8.6.2-terminates", what=f"steps at condition {c:g}, {k}", measured=v)
              for k, row in steps.items() for c, v in zip(conditions, row, strict=True)),
            Finding(claim="8.6.2-variants", what="largest difference of the points of 4 formulas "
                    "for β on a quadratic", measured=apart, predicted=0.0),
        ],
        verdicts=[
            judge("8.6.2-zigzag", max(angles) < 1e-5,
                  because=f"largest cosine {max(angles):.0e}"),
            judge("8.6.2-terminates",
                  float(np.linalg.norm(runs["conjugate gradients"][2])) < 1e-6,
                  steps["conjugate gradients"][-1] < steps["steepest descent"][-1] / 10,
                  because=f"two steps in the plane; at condition 1000 in 20 dimensions "
                  f"{steps['conjugate gradients'][-1]:.0f} steps against "
                  f"{steps['steepest descent'][-1]:.0f}"),
            judge("8.6.2-variants", apart < 1e-6, because=f"they differ by {apart:.0e}"),
        ],
        note="Exact line searches: on a quadratic the analytic step.",
    )  # fmt: skip


def quasi_newton(config: Config) -> FigureOutcome:
    """Steps and gradients to tolerance, on a quadratic, Rosenbrock's valley, a small network."""
    problems: dict[str, Callable[[], Objective]] = {
        "quadratic": lambda: quadratic(
            100.0, 20, generator=seeds.generator(config.seed, "axes")).objective(),
        "Rosenbrock": lambda: SURFACES["rosenbrock"]().objective(),
        "small network": lambda: _small_network(config),
    }  # fmt: skip
    tracks: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    limit = config.pick(80, 200)
    for title, build in problems.items():
        tracks[title] = {}
        for name, make in _METHODS.items():
            objective = _Counted(build())
            optimizer = make(objective.inner.space.module)
            values, gradients = [], []
            for _ in range(limit):
                theta = objective.inner.theta()
                values.append(float(objective.inner.value(theta)))
                gradients.append(objective.count)
                if values[-1] < 1e-12:
                    break
                objective.step(optimizer)
            tracks[title][name] = (np.array(gradients, dtype=float), np.array(values))
    panels = [
        Panel(title=title, x_label="gradients", y_label="loss", log_x=True, log_y=True,
              series=tuple(Series(label=n, x=g + 1, y=np.maximum(v, 1e-14))
                           for n, (g, v) in runs.items()))
        for title, runs in tracks.items()
    ]  # fmt: skip
    levels = {"quadratic": 1e-8, "Rosenbrock": 1e-8, "small network": 0.05}
    need = {
        t: {n: (float(_until(v, levels[t])), float(g[_until(v, levels[t])])
                if _until(v, levels[t]) >= 0 else float("nan"))
            for n, (g, v) in runs.items()}
        for t, runs in tracks.items()
    }  # fmt: skip
    # BFGS with exact searches walks like conjugate gradients on a quadratic, and ends in P steps.
    twins = []
    for make in (
        lambda m: BFGS(m, search="exact", scale_first=False),
        lambda m: NonlinearCG(m, search="exact"),
    ):
        objective = quadratic(50.0, 5).objective()
        twins.append(walk(objective, make(objective.space.module), 5))
    apart = float(np.abs(twins[0] - twins[1]).max())
    left = float(np.linalg.norm(twins[0][-1]))
    steps = {t: {n: s for n, (s, _) in row.items()} for t, row in need.items()}
    return FigureOutcome(
        results={
            "race": Panels(
                label="8.6.3", title="Five methods, three problems", columns=3,
                panels=tuple(panels),
                note="Gradients as counted by the objective; a step of Newton's method costs its "
                "P Hessian products besides.",
            )
        },
        findings=[
            *(Finding(claim="8.6.3-fast", what=f"{t}: steps to {levels[t]:g}, {n}",
                      measured=s if s >= 0 else float("nan"))
              for t, row in need.items() for n, (s, _) in row.items()),
            *(Finding(claim="8.6.3-fast", what=f"{t}: gradients to {levels[t]:g}, {n}", measured=g)
              for t, row in need.items() for n, (_, g) in row.items()),
            Finding(claim="8.6.3-cg", what="largest difference of BFGS and CG, exact searches, "
                    "quadratic", measured=apart, predicted=0.0),
            Finding(claim="8.6.3-cg", what="distance to the minimum after P = 5 steps of BFGS",
                    measured=left, predicted=0.0),
        ],
        verdicts=[
            judge("8.6.3-fast", *(
                steps[t]["BFGS"] >= 0
                and (steps[t]["steepest descent"] < 0
                     or steps[t]["BFGS"] < steps[t]["steepest descent"]) for t in problems),
                  because="; ".join(
                      f"{t}: " + ", ".join(
                          f"{n} {s:.0f}" if s >= 0 else f"{n} –" for n, s in row.items())
                      for t, row in steps.items()) + " steps (–: not reached)"),
            judge("8.6.3-lbfgs", *(steps[t]["L-BFGS"] >= 0 for t in problems),
                  because="L-BFGS with 10 pairs of vectors: " + ", ".join(
                      f"{row['L-BFGS']:.0f} against {row['BFGS']:.0f} of BFGS ({t})"
                      for t, row in steps.items())),
            judge("8.6.3-cg", apart < 1e-6, left < 1e-6,
                  because=f"they differ by {apart:.0e}; after 5 steps {left:.0e} is left"),
        ],
        note="The network: 120 points on two spirals, 2-10-2, tanh.",
    )  # fmt: skip


def _small_network(config: Config) -> Objective:
    splits = data.spirals(train=120, test=2, turns=0.5, noise=0.05,
                          generator=seeds.generator(config.seed, "data"))  # fmt: skip
    model = models.build(
        models.MLPConfig(widths=(10,), activation="tanh", init="lecun"), input_shape=(2,),
        num_outputs=2, generator=seeds.generator(config.seed, "init"), dtype=torch.float64,
    )  # fmt: skip
    return Problem(
        model, "categorical", train=(splits.train[0].double(), splits.train[1])
    ).objective()


class _Counted:
    """An objective whose gradients are counted while an optimizer steps on it."""

    def __init__(self, inner: Objective) -> None:
        self.inner, self.count = inner, 0

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step; its gradients are added to `count`."""
        if isinstance(optimizer, torch.optim.LBFGS):

            def closure() -> torch.Tensor:
                self.count += 1
                return self.inner()

            optimizer.step(closure)  # pyright: ignore[reportArgumentType]
            return
        before = self._known(optimizer)
        optimizer.step(self.inner)  # pyright: ignore
        self.count += self._known(optimizer) - before

    @staticmethod
    def _known(optimizer: torch.optim.Optimizer) -> int:
        told = optimizer.diagnostics()  # pyright: ignore[reportAttributeAccessIssue]
        return int(told["gradients"] if "gradients" in told else told["steps"])


PAGES = (
    Page(
        name="8.6.1",
        own_network="the functions here are formulas",
        title="Newton's method",
        question="Curvature tells how far to go. Where is that right, where wrong, and what does "
        "it cost?",
        claims={
            "8.6.1-one": "on a quadratic one Newton step lands on the minimum",
            "8.6.1-damping": "near saddles it goes wrong; adding αI to the Hessian cures that",
            "8.6.1-cost": "a step costs O(k³), too much for a network",
        },
        make=newton,
        code="""
            from kobai.optim import Newton
            from kobai.problem import SURFACES

            surface = SURFACES["rosenbrock"]()
            objective = surface.objective()
            optimizer = Newton(objective.space.module)
            for step in range(30):
                loss = optimizer.step(objective)
            print(f"loss {float(loss):.1e}, distance {surface.distance(objective.theta()):.1e}")
            print({k: v for k, v in optimizer.diagnostics().items() if k in
                   ("steps", "rejected_trials", "indefinite_solves")})
        """,
    ),
    Page(
        name="8.6.2",
        own_network="the functions here are formulas",
        title="Conjugate gradients",
        question="Steepest descent undoes part of its last step at every turn. What does it take "
        "not to?",
        claims={
            "8.6.2-zigzag": "with exact searches each direction is orthogonal to the one before",
            "8.6.2-terminates": "conjugate directions need at most P steps on a quadratic",
            "8.6.2-variants": "on a quadratic all formulas for β are the same",
        },
        make=conjugate,
        code="""
            from kobai.optim import NonlinearCG, SteepestDescent
            from kobai.problem.surfaces import quadratic

            for kind in (SteepestDescent, NonlinearCG):
                objective = quadratic(condition=100.0, dimension=4).objective()
                optimizer = kind(objective.space.module, search="exact", iterations=5)
                optimizer.step(objective)
                print(kind.__name__, f"{float(objective.value(objective.theta())):.1e}")
        """,
    ),
    Page(
        name="8.6.3",
        own_network="BFGS and Newton keep dense matrices, of a small network",
        title="BFGS and L-BFGS",
        question="Can one have Newton's steps without its matrix?",
        claims={
            "8.6.3-fast": "building up an inverse Hessian from gradients needs far fewer steps "
            "than steepest descent",
            "8.6.3-lbfgs": "L-BFGS does it with a few vectors",
            "8.6.3-cg": "with exact searches BFGS is conjugate gradients on a quadratic",
        },
        make=quasi_newton,
        code="""
            from kobai.optim import BFGS
            from kobai.problem import SURFACES

            surface = SURFACES["rosenbrock"]()
            objective = surface.objective()
            optimizer = BFGS(objective.space.module, iterations=100, tol=1e-8)
            optimizer.step(objective)
            told = optimizer.diagnostics()
            print(f"distance {surface.distance(objective.theta()):.1e} after", told["iterations"],
                  "iterations and", told["gradients"], "gradients")
        """,
    ),
)
