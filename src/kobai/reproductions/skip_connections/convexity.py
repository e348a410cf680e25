"""The source's starting point: do skips make the loss less non-convex along training?"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from kobai import optim, seeds, training
from kobai.curvature import Hessian, density, measure
from kobai.landscape import evaluate_plane, random_directions, smoothness
from kobai.reproductions.figures import FigureOutcome
from kobai.reproductions.skip_connections.cells import setting
from kobai.reproductions.skip_connections.config import Config
from kobai.results import Finding, Panel, Panels, Series, Verdict
from kobai.studies import Interrupted, head_of

_EXAMPLES = 1000
_PRODUCTS = 400


def figure_convexity(
    config: Config, folder: Path, report: Callable[[str], None], stop: Callable[[], bool]
) -> FigureOutcome:
    """Hessian's least eigenvalue and share of negative ones along training; a plane at the end."""
    del folder
    stages = np.array([0.0, 0.2, 1.0, config.length])
    least, ratio, negative = ({n: [] for n in ("plain", "skips")} for _ in range(3))
    planes, shapes = {}, {}
    for network in ("plain", "skips"):
        problem = setting(config, network).problem(config.seed)
        optimizer = optim.build(
            "kfac", problem.model, problem.likelihood, generator=seeds.generator(config.seed, "l")
        )
        order = seeds.generator(config.seed, "shuffle")
        done = 0.0
        for stage in stages:
            if stage > done:
                training.train(
                    problem, optimizer, generator=order, epochs=float(stage - done),
                    batch_size=config.batch_sizes[0], evaluate_every=config.length,
                    evaluate_train_limit=1000, stop=stop,
                )  # fmt: skip
                done = float(stage)
            if stop():
                raise Interrupted
            problem.model.eval()
            risk = head_of(problem, _EXAMPLES)
            spectrum = measure(
                risk, k=4, which="both", tol=1e-2, trace_tolerance=0.1, max_products=_PRODUCTS,
                generator=seeds.generator(config.seed, "probes"),
            )  # fmt: skip
            found = density(
                Hessian(risk),
                num_probes=4,
                num_steps=40,
                generator=seeds.generator(config.seed, "slq"),
            )
            low, high = float(spectrum.eigenvalues[0]), float(spectrum.eigenvalues[-1])
            # Most eigenvalues of these networks are zero; rounding must not give them a sign.
            share = found.negative_fraction(zero=1e-4 * high).value
            least[network].append(low)
            ratio[network].append(-low / high)
            negative[network].append(share)
            report(f"{network}, epoch {stage:g}: λ_min {low:.3g}, λ_max {high:.3g}")
        risk = head_of(problem, _EXAMPLES)
        directions = random_directions(
            risk, problem.space.theta(), generator=seeds.generator(config.seed, "plane")
        )
        size = 15 if config.scale == "quick" else 31
        planes[network] = evaluate_plane(
            risk, directions, a=size, b=size, label=f"{network} network", stop=stop
        )
        shapes[network] = smoothness(planes[network])
        if stop():
            raise Interrupted
    means = {n: float(np.mean(ratio[n])) for n in ratio}
    shares = {n: float(np.mean(negative[n])) for n in negative}
    better = [values["skips"] < values["plain"] for values in (means, shares)]
    panels = tuple(
        Panel(
            title=title,
            x_label="epoch",
            y_label=unit,
            series=tuple(
                Series(label=n, x=stages, y=np.array(values[n]), kind="both") for n in values
            ),
        )
        for title, unit, values in (
            ("least eigenvalue", "λ_min", least),
            ("least against largest", "−λ_min / λ_max", ratio),
            ("negative eigenvalues", "share", negative),
        )
    )
    return FigureOutcome(
        results={
            "hessian": Panels(
                label="convexity", title="Negative curvature along training", panels=panels,
                columns=3,
            ),
            **{f"plane_{n}": plane for n, plane in planes.items()},
        },
        findings=[
            Finding(
                claim="convexity",
                what=f"{what}, {network}, mean over stages",
                measured=float(np.mean(values[network])),
            )
            for what, values in (("−λ_min/λ_max", ratio), ("share of negative curvature", negative))
            for network in ("plain", "skips")
        ],
        verdicts=[
            Verdict(
                claim="convexity",
                verdict="holds"
                if all(better)
                else "holds in part"
                if any(better)
                else "does not hold",
                because=f"over the stages of training −λ_min/λ_max averages {means['plain']:.3g} "
                f"plain and {means['skips']:.3g} with skips, the share of negative eigenvalues "
                f"{shares['plain']:.2g} and {shares['skips']:.2g} (one seed)",
            )
        ],
        note=f"Hessian of the first {_EXAMPLES} training examples along K-FAC runs at its "
        f"defaults, batch {config.batch_sizes[0]}; random filter-normalised plane at the end.",
    )  # fmt: skip
