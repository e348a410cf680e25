"""Section 8.2.1: curvature that eats up the progress a gradient step promises."""

import numpy as np
import torch

from kobai import seeds
from kobai.curvature import Hessian
from kobai.problem import EmpiricalRisk
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.networks import classifier, per_step, pictures
from kobai.reproductions.deep_learning_book.page import Page, judge, mean_of
from kobai.reproductions.figures import FigureOutcome
from kobai.results import Panel, Panels, Series


def terms(config: Config, rate: float, seed: int) -> dict[str, np.ndarray]:
    """Step, loss, gᵀg, gᵀHg of minibatches along a run of SGD."""
    splits, steps = pictures(config), config.pick(100, 500)
    problem = classifier(splits, (32,), seed=seed, dtype=torch.float64, activation="tanh",
                         model=config.model)  # fmt: skip
    whole = problem.objective()
    rows: list[tuple[float, ...]] = []
    every = steps // 25

    def watch(step: int, objective: EmpiricalRisk) -> None:
        if step % every:
            return
        theta = problem.space.theta()
        gradient = objective.grad(theta)
        product = gradient @ (Hessian(objective, theta) @ gradient)
        row = (whole.value(theta), gradient @ gradient, product)
        rows.append((float(step), *map(float, row)))

    per_step(problem, torch.optim.SGD(problem.model.parameters(), lr=rate), steps, 128, watch,
             generator=seeds.generator(seed, "order"))  # fmt: skip
    return dict(zip(("step", "loss", "gg", "gHg"), np.array(rows).T, strict=True))


def ill_conditioning(config: Config) -> FigureOutcome:
    """The two terms of the second-order prediction of a step, ε‖g‖² and ½ε²gᵀHg, while training."""
    rates, chosen = (0.05, 0.5, 2.0), config.seeds[:3]
    every = {rate: [terms(config, rate, seed) for seed in chosen] for rate in rates}
    runs = {rate: found[0] for rate, found in every.items()}
    share = {r: 0.5 * r * run["gHg"] / run["gg"] for r, run in runs.items()}
    means = {
        r: [float((0.5 * r * run["gHg"] / run["gg"]).mean()) for run in found]
        for r, found in every.items()
    }
    above = [float((run["gHg"] > run["gg"]).mean()) for run in every[2.0]]
    largest = {
        r: max(float((0.5 * r * run["gHg"] / run["gg"]).max()) for run in found)
        for r, found in every.items()
    }
    grew, shrank = [], []
    for run in every[0.05]:
        curvature = run["gHg"] / run["gg"]
        grew.append(float(curvature[-8:].mean() / curvature[:3].mean()))
        shrank.append(float(run["gg"][-8:].mean() / run["gg"][:3].mean()))
    middle = runs[0.5]
    panels = (
        Panel(title="terms of a step at ε = 0.5", x_label="step", y_label="change of the loss",
              log_y=True, series=(
                  Series(label="ε gᵀg", x=middle["step"], y=0.5 * middle["gg"]),
                  Series(label="½ ε² gᵀHg", x=middle["step"],
                         y=np.maximum(0.125 * middle["gHg"], 1e-12)))),
        Panel(title="½ ε² gᵀHg over ε gᵀg", x_label="step", y_label="ratio",
              levels={"uphill above": 1.0},
              series=tuple(Series(label=f"ε = {rate:g}", x=runs[rate]["step"], y=y)
                           for rate, y in share.items())),
        Panel(title="the loss meanwhile", x_label="step", y_label="training loss", log_y=True,
              series=tuple(Series(label=f"ε = {rate:g}", x=run["step"], y=run["loss"])
                           for rate, run in runs.items())),
    )  # fmt: skip
    return FigureOutcome(
        results={
            "terms": Panels(
                label="8.2.1", title="What a step promises and what curvature takes", columns=3,
                panels=panels,
                note="A gradient step of length ε changes the loss by −ε gᵀg + ½ ε² gᵀHg to second "
                "order. Where the ratio passes 1 the step goes uphill on its own minibatch.",
            )
        },
        findings=[
            *(mean_of("8.2.1-eats", f"mean of ½ε²gᵀHg / εgᵀg at ε = {rate:g}", v)
              for rate, v in means.items()),
            mean_of("8.2.1-growth", "gᵀHg/gᵀg, end over start (ε = 0.05)", grew),
            mean_of("8.2.1-growth", "gᵀg, end over start (ε = 0.05)", shrank),
        ],
        verdicts=[
            judge("8.2.1-eats", min(above) > 0, largest[2.0] > 0.5,
                  because=f"at ε = 2 the ratio reaches {largest[2.0]:.2f} and exceeds 1 on "
                  f"{100 * np.mean(above):.0f} % of the steps looked at; at ε = 0.05 it stays "
                  f"below {largest[0.05]:.2f}"),
            judge("8.2.1-growth", min(grew) > 1, float(np.mean(grew)) > 1,
                  because="at the small rate the curvature along the gradient changes by a factor "
                  f"{np.mean(grew):.2f} (least {min(grew):.2f}), the squared gradient by "
                  f"{np.mean(shrank):.3f}"),
        ],
        note=f"{config.data}, {config.model or 'tanh network of width 32'}, SGD, batch 128; "
        f"{len(chosen)} seeds, the first is drawn.",
    )  # fmt: skip


PAGES = (
    Page(
        name="8.2.1",
        title="Ill-conditioning",
        question="Why does a long gradient not mean a large step forward? Because the loss curves "
        "up along the gradient: the second-order term can cancel what the slope promises.",
        claims={
            "8.2.1-eats": "½ε²gᵀHg can exceed εgᵀg, and learning then stalls although the "
            "gradient is strong",
            "8.2.1-growth": "gᵀHg grows during training, relative to gᵀg",
        },
        make=ill_conditioning,
        code="""
            import torch
            from kobai.curvature import Hessian
            from kobai.problem import SURFACES
            from kobai.problem.surfaces import quadratic

            objective = quadratic(condition=100.0).objective()
            theta = objective.theta()
            g = objective.grad(theta)
            gHg = float(g @ (Hessian(objective, theta) @ g))
            for rate in (0.005, 0.02, 0.03):
                promised, taken = rate * float(g @ g), 0.5 * rate**2 * gHg
                print(f"rate {rate}: slope promises {promised:.1f}, curvature takes {taken:.1f}")
        """,
    ),
)
