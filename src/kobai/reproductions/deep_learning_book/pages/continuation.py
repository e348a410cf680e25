"""Section 8.7.6: continuation and curriculum learning."""

import numpy as np
import torch
from torch import Tensor

from kobai import models, seeds
from kobai.problem import SURFACES, Problem
from kobai.problem.surfaces import quadratic
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.page import Page, judge, mean_of
from kobai.reproductions.figures import FigureOutcome
from kobai.results import Finding, Panel, Panels, Series
from kobai.training import Blurred, minimize_by_continuation, train_by_curriculum

_SIGMAS = (1.2, 0.8, 0.5, 0.3, 0.15, 0.0)


def _descent(rate: float):
    return lambda module: torch.optim.SGD(module.parameters(), lr=rate)


def blurring(config: Config) -> tuple[dict[str, Panels], list[Finding], dict[str, float]]:
    """Rastrigin's function blurred; how many starts find its minimum with and without."""
    surface = SURFACES["rastrigin"]()
    across = np.linspace(-3, 3, 241)
    profile = []
    for sigma in (0.0, 0.15, 0.3, 0.6):
        # Along one axis E[10 − 10 cos 2π(x + σε)] = 10 − 10 e^{−2π²σ²} cos 2πx.
        smooth = np.exp(-2 * np.pi**2 * sigma**2)
        value = across**2 + sigma**2 + 10 - 10 * smooth * np.cos(2 * np.pi * across)
        profile.append(Series(label=f"σ = {sigma:g}", x=across, y=value))
    draw, size = seeds.generator(config.seed, "starts"), config.pick(10, 32)
    starts = 4 * (2 * torch.rand(size, 2, generator=draw).double() - 1)
    found = {"descent": 0, "continuation": 0}
    steps, paths = 20, []
    for number, start in enumerate(starts):
        objective = surface.objective(start)
        optimizer = torch.optim.SGD(objective.space.module.parameters(), lr=0.003)
        for _ in range(steps * len(_SIGMAS)):
            optimizer.step(objective)
        found["descent"] += surface.distance(objective.theta()) < 0.05
        objective = surface.objective(start)
        stages = minimize_by_continuation(objective, _descent(0.02), _SIGMAS[:-1], steps=steps,
                                          pairs=config.pick(12, 24), sampling="cubature",
                                          generator=seeds.generator(config.seed, "blur")
                                          )  # fmt: skip
        optimizer = torch.optim.SGD(objective.space.module.parameters(), lr=0.003)
        for _ in range(steps):
            optimizer.step(objective)
        found["continuation"] += surface.distance(objective.theta()) < 0.05
        if number < 4:
            paths.append(np.linalg.norm(stages.thetas, axis=1))
    share = {name: count / size for name, count in found.items()}
    # The blurred value of a quadratic is known: J + σ² tr H / 2; the gradient does not change.
    bowl = quadratic(10.0).objective(torch.tensor([0.3, -0.2]).double())
    blurred = Blurred(bowl, 0.5, pairs=64, sampling="cubature", generator=draw)
    theta = bowl.theta()
    drift = float((blurred.grad(theta) - bowl.grad(theta)).norm())
    lift = float(blurred.value(theta) - bowl.value(theta))
    panels = Panels(
        label="8.7.6", title="Continuation: blur, minimise, sharpen", columns=2,
        panels=(
            Panel(title="Rastrigin's function along an axis, blurred", x_label="θ₁",
                  y_label="J blurred", series=tuple(profile)),
            Panel(title="distance to the global minimum, four starts", x_label="stage (σ falls)",
                  y_label="‖θ‖", series=tuple(
                      Series(label=f"start {i + 1}", x=np.arange(len(p), dtype=float), y=p,
                             kind="line") for i, p in enumerate(paths))),
        ),
        note="J(θ) becomes the mean of J over normal θ′ around θ; ever smaller σ leads back to J.",
    )  # fmt: skip
    findings = [
        *(Finding(claim="8.7.6-continuation", what=f"share of starts that find the minimum, {n}",
                  measured=v) for n, v in share.items()),
        Finding(claim="8.7.6-blur", what="change of the gradient of a quadratic under blur",
                measured=drift, predicted=0.0),
        Finding(claim="8.7.6-blur", what="rise of its value at σ = 0.5", measured=lift,
                predicted=0.5 * 0.25 * 11.0),
    ]  # fmt: skip
    return {"continuation": panels}, findings, {**share, "drift": drift, "lift": lift}


def lagged_sums(
    count: int, steps: int, longest: int, generator: torch.Generator
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Sequences with two marked digits; the class is their sum; the first one lies `lag` back.

    Args:
        count: Examples.
        steps: Length of every sequence.
        longest: Largest lag, below `steps`.
        generator: Draws all.

    Returns:
        (inputs (N, steps, 2), labels (N,)) and the lags (N,), the difficulty.
    """
    digits = torch.randint(3, (count, steps), generator=generator)
    lag = torch.randint(1, longest + 1, (count,), generator=generator)
    marks = torch.zeros(count, steps)
    rows = torch.arange(count)
    marks[rows, -1] = 1.0
    marks[rows, steps - 1 - lag] = 1.0
    labels = digits[rows, -1] + digits[rows, steps - 1 - lag]
    return (torch.stack([digits.float() - 1, marks], -1), labels), lag.float()


def curricula(config: Config) -> tuple[Panels, dict[str, list[float]]]:
    """Test loss of an LSTM on sums with long lags, with and without a curriculum."""
    steps, longest, stages = 16, 14, 6
    plans = {
        "none": ("easiest", (1.0,) * stages),
        "easiest first": ("easiest", (0.15, 0.3, 0.5, 0.7, 1.0, 1.0)),
        "stochastic": ("stochastic", (0.0, 0.2, 0.4, 0.6, 1.0, 1.0)),
        "mixed": ("mixed", (0.0, 0.2, 0.4, 0.6, 1.0, 1.0)),
    }
    ends: dict[str, list[float]] = {name: [] for name in plans}
    tracks: dict[str, list[list[float]]] = {name: [] for name in plans}
    for seed in config.seeds:
        data, lag = lagged_sums(config.pick(400, 600), steps, longest,
                                seeds.generator(seed, "lags"))  # fmt: skip
        test, _ = lagged_sums(400, steps, longest, seeds.generator(seed, "test"))
        for name, (strategy, shares) in plans.items():
            model = models.LSTM(models.LSTMConfig(hidden=24), input_shape=(steps, 2),
                                num_outputs=5, generator=seeds.generator(seed, "init"))  # fmt: skip
            problem = Problem(model, "categorical", train=data, test=test)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            records = train_by_curriculum(
                problem, optimizer, lag, shares, strategy=strategy,  # pyright: ignore
                epochs=config.pick(2, 3), batch_size=50,
                generator=seeds.generator(seed, "order"),
            )  # fmt: skip
            tracks[name].append([float(r.test_loss[-1]) for r in records])
            ends[name].append(float(records[-1].test_accuracy[-1]))
    x = np.arange(1, stages + 1, dtype=float)
    panel = Panel(
        title="LSTM, sum of two digits up to 14 steps apart", x_label="stage",
        y_label="test loss (all lags)",
        series=tuple(Series(label=n, x=x, y=np.mean(t, axis=0), kind="both",
                            error=np.std(t, axis=0, ddof=1) / len(t) ** 0.5)
                     for n, t in tracks.items()),
    )  # fmt: skip
    return Panels(label="8.7.6", title="Curricula of long dependencies", panels=(panel,)), ends


def continuation(config: Config) -> FigureOutcome:
    """The page of section 8.7.6."""
    results, findings, share = blurring(config)
    panel, ends = curricula(config)
    rivals = ("easiest first", "stochastic", "mixed")
    gains = {n: np.array(ends[n]) - np.array(ends["none"]) for n in rivals}
    clear = {n: float(g.mean()) > 2 * float(g.std(ddof=1)) / len(g) ** 0.5
             for n, g in gains.items()}  # fmt: skip
    return FigureOutcome(
        results={**results, "curriculum": panel},
        findings=[
            *findings,
            *(mean_of("8.7.6-curriculum", f"test accuracy, curriculum {n}", v)
              for n, v in ends.items()),
        ],
        verdicts=[
            judge("8.7.6-blur", share["drift"] < 1e-9, abs(share["lift"] - 1.375) < 1e-9,
                  because=f"on a quadratic the gradient changes by {share['drift']:.0e} and the "
                  f"value rises by {share['lift']:.4f} (theory 1.375); on Rastrigin's function the "
                  "ripples shrink by exp(−2π²σ²)"),
            judge("8.7.6-continuation", share["continuation"] > 2 * share["descent"],
                  because=f"{100 * share['continuation']:.0f} % of the starts find the global "
                  f"minimum with continuation, {100 * share['descent']:.0f} % without"),
            judge("8.7.6-curriculum", *clear.values(),
                  because="test accuracy against no curriculum (same steps): " + ", ".join(
                      f"{100 * g.mean():+.1f} ± {100 * g.std(ddof=1) / len(g) ** 0.5:.1f} points "
                      f"({n})" for n, g in gains.items())),
        ],
        note=f"{len(config.seeds)} seeds for the curricula; cubature for the blur.",
    )  # fmt: skip


PAGES = (
    Page(
        name="8.7.6",
        own_network="a recurrent net on sequences is trained",
        title="Continuation methods and curriculum learning",
        question="If a problem is too hard from where one starts, can one start with an easier one "
        "and change it step by step?",
        claims={
            "8.7.6-blur": "blurring makes an objective easier, up to convex",
            "8.7.6-continuation": "minimising ever less blurred objectives ends in better minima",
            "8.7.6-curriculum": "a curriculum, in particular a stochastic one, helps a recurrent "
            "net to learn long dependencies",
        },
        make=continuation,
        code="""
            import torch
            from kobai import seeds
            from kobai.problem import SURFACES
            from kobai.training import minimize_by_continuation

            surface = SURFACES["rastrigin"]()
            objective = surface.objective(torch.tensor([2.6, -3.1]).double())
            stages = minimize_by_continuation(
                objective, lambda m: torch.optim.SGD(m.parameters(), lr=0.02),
                (1.2, 0.8, 0.5, 0.3, 0.15), steps=20, pairs=24, sampling="cubature",
                generator=seeds.generator(0, "blur"))
            for sigma, theta in zip(stages.sigmas, stages.thetas):
                print(f"sigma {sigma:.2f}: theta {theta.round(3)}")
        """,
    ),
)
