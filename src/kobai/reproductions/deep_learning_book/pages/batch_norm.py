"""Section 8.7.1: the linear chain, with and without normalisation, and a network."""

import math

import numpy as np
import torch

from kobai import seeds
from kobai.models import BatchNorm
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.networks import classifier, pictures
from kobai.reproductions.deep_learning_book.page import Page, judge, mean_of
from kobai.reproductions.figures import FigureOutcome
from kobai.results import Finding, Panel, Panels, Series
from kobai.training import train


def expansion(weights: np.ndarray, gradient: np.ndarray, rate: float) -> np.ndarray:
    """The terms of Π(wᵢ − ε gᵢ) by their order in ε, from 0 to L.

    Args:
        weights: (L,) weights of the chain.
        gradient: (L,) gradient.
        rate: ε.
    """
    terms = np.array([1.0])
    for w, g in zip(weights, gradient, strict=True):
        # Multiply the polynomial in ε by (w − ε g).
        terms = np.concatenate([terms * w, [0.0]]) + np.concatenate([[0.0], -rate * g * terms])
    return terms


def chain(config: Config) -> FigureOutcome:
    """ŷ = x w₁ ⋯ w_L: orders of a step; the chain under normalisation; what γ and β restore."""
    draw = np.random.default_rng(config.seed)
    rate, depths = 0.05, np.arange(2, 31, 2)
    shares = {"|w| about 0.8": 0.8, "|w| about 1": 1.0, "|w| about 1.3": 1.3}
    beyond: dict[str, list[float]] = {}
    for name, size in shares.items():
        rows = []
        for depth in depths:
            found = []
            for _ in range(30):
                w = size * (1 + 0.05 * draw.standard_normal(depth))
                product = np.prod(w)
                terms = expansion(w, product / w, rate)  # dŷ/dw at x = 1
                found.append(np.abs(terms[2:]).sum() / abs(terms[1]))
            rows.append(float(np.mean(found)))
        beyond[name] = rows
    w = 1.3 * (1 + 0.05 * draw.standard_normal(12))
    orders = np.abs(expansion(w, np.prod(w) / w, rate))
    exact = float(np.prod(w - rate * np.prod(w) / w))
    agree = abs(exact - float(expansion(w, np.prod(w) / w, rate).sum()))
    # With normalisation of every layer the output of layer L−1 is N(0, 1) whatever lies below.
    generator = seeds.generator(config.seed, "chain")
    x = torch.randn(4000, generator=generator, dtype=torch.float64)
    weights = torch.rand(8, generator=generator, dtype=torch.float64) + 0.5
    weights.requires_grad_()

    def normalised(w: torch.Tensor) -> torch.Tensor:
        h = x
        for a in w[:-1]:
            h = a * h
            h = (h - h.mean()) / h.var(correction=0).sqrt()
        return w[-1] * h

    target = 0.7 * x
    loss = 0.5 * (normalised(weights) - target).square().mean()
    (gradient,) = torch.autograd.grad(loss, weights)
    lower = float(gradient[:-1].abs().max())
    grid = np.linspace(-2, 3, 41)
    losses = {
        "last weight": [_at(normalised, weights, target, -1, float(v)) for v in grid],
        "first weight": [_at(normalised, weights, target, 0, float(v)) for v in grid],
    }
    bend = np.diff(losses["last weight"], 3)
    restored = _restored(x)
    panels = (
        Panel(title="a step on a chain of 12, weights near 1.3", x_label="order in ε",
              y_label="|term| of the new output", log_y=True,
              series=(Series(label="terms", x=np.arange(13, dtype=float), kind="both",
                             y=np.maximum(orders, 1e-16)),)),
        Panel(title="orders 2 and up over order 1", x_label="depth L", log_y=True,
              y_label="ratio", levels={"as large as intended": 1.0},
              series=tuple(Series(label=n, x=depths.astype(float), y=np.array(v), kind="both")
                           for n, v in beyond.items())),
        Panel(title="normalised chain of 8", x_label="value of one weight", y_label="loss",
              series=tuple(Series(label=n, x=grid, y=np.array(v)) for n, v in losses.items())),
    )  # fmt: skip
    network, ends = _network(config)
    deepest = {n: v[-1] for n, v in beyond.items()}
    wins = {
        rate_: float(np.mean(ends["batch", rate_])) < float(np.mean(ends["none", rate_]))
        for _, rate_ in ends
    }
    return FigureOutcome(
        results={
            "chain": Panels(label="8.7.1", title="Layers that move at the same time", columns=3,
                            panels=panels,
                            note="Every weight's gradient takes the others to stand still. Terms "
                            "of order two and more are what that leaves out. Under normalisation "
                            "a lower weight acts through its sign alone."),
            "network": Panels(label="8.7.1", title="A network of six tanh layers", columns=2,
                              panels=network),
        },
        findings=[
            Finding(claim="8.7.1-terms", what="expanded terms against the exact new output, "
                    "difference", measured=agree, predicted=0.0),
            *(Finding(claim="8.7.1-terms", what=f"orders ≥ 2 over order 1 at depth 30, {n}",
                      measured=v) for n, v in deepest.items()),
            Finding(claim="8.7.1-linear", what="largest gradient of a lower weight after "
                    "normalisation", measured=lower, predicted=0.0),
            Finding(claim="8.7.1-linear", what="largest third difference of the loss in the last "
                    "weight", measured=float(np.abs(bend).max()), predicted=0.0),
            *(Finding(claim="8.7.1-restore", what=f"{n} of γ H′ + β", measured=m, predicted=p)
              for n, (m, p) in restored.items()),
            *(mean_of("8.7.1-helps", f"training loss, rate {r:g}, normalisation {n}", v)
              for (n, r), v in ends.items()),
        ],
        verdicts=[
            judge("8.7.1-terms", deepest["|w| about 1.3"] > 1,
                  deepest["|w| about 0.8"] < 0.1, agree < 1e-9 * orders.sum(),
                  because="at depth 30 and ε = 0.05 the orders beyond the first are "
                  + ", ".join(f"{v:.2g} ({n})" for n, v in deepest.items())
                  + " times the first"),
            judge("8.7.1-linear", lower < 1e-10, float(np.abs(bend).max()) < 1e-10,
                  because=f"lower weights have gradients of at most {lower:.0e}; in the last one "
                  "the loss is an exact parabola"),
            judge("8.7.1-restore", all(abs(m - p) < 1e-6 for m, p in restored.values()),
                  because="mean and deviation of a layer are β and γ, two parameters, whatever "
                  "the layers below do"),
            judge("8.7.1-helps", *wins.values(),
                  because="training loss with and without normalisation: " + "; ".join(
                      f"{np.mean(ends['batch', r]):.3f} and {np.mean(ends['none', r]):.3f} at "
                      f"rate {r:g}" for r in wins)),
        ],
        note=f"The network: {config.data}, width 32, batch 64, {len(config.seeds)} seeds.",
    )  # fmt: skip


def _at(normalised, weights, target, which: int, value: float) -> float:
    moved = weights.detach().clone()
    # A first weight of exactly 0 has no direction to normalise.
    moved[which] = value if value or which else 1e-9
    return float(0.5 * (normalised(moved) - target).square().mean())


def _restored(x: torch.Tensor) -> dict[str, tuple[float, float]]:

    layer = BatchNorm(1)
    layer = layer.double()
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.fill_(2.5 if name == "weight" else -0.75)
    out = layer.train()((40.0 * x + 7.0)[:, None])
    return {
        "mean": (float(out.mean().detach()), -0.75),
        "deviation": (float(out.std(correction=0).detach()), 2.5),
    }


def _network(config: Config) -> tuple[tuple[Panel, ...], dict[tuple[str, float], list[float]]]:
    splits = pictures(config, limit=config.pick(300, 1000))
    ends: dict[tuple[str, float], list[float]] = {}
    panels = []
    for rate in (0.01, 0.3):
        series = []
        for kind in ("none", "batch"):
            losses, x = [], np.arange(0)
            for seed in config.seeds:
                problem = classifier(splits, (32,) * 6, seed=seed, activation="tanh",
                                     init="glorot-uniform", normalization=kind)  # fmt: skip
                history = train(problem, torch.optim.SGD(problem.model.parameters(), lr=rate),
                                generator=seeds.generator(seed, "order"),
                                epochs=config.pick(5, 10), batch_size=64)  # fmt: skip
                losses.append(history.train_loss)
                x = history.epoch
            ends[kind, rate] = [float(v[-1]) for v in losses]
            series.append(Series(label=f"normalisation {kind}", x=x, y=np.mean(losses, axis=0),
                                 error=np.std(losses, axis=0, ddof=1) / math.sqrt(len(losses)),
                                 kind="both"))  # fmt: skip
        panels.append(Panel(title=f"rate {rate:g}", x_label="epoch", y_label="training loss",
                            log_y=True, series=tuple(series)))  # fmt: skip
    return tuple(panels), ends


PAGES = (
    Page(
        name="8.7.1",
        own_network="a network with and without normalisation is compared",
        title="Batch normalisation",
        question="All layers move at once, though every gradient assumes that the others stand "
        "still. How wrong does that get with depth, and what does normalising do about it?",
        claims={
            "8.7.1-terms": "the terms of order two and more that a gradient step ignores explode "
            "where weights exceed 1 and vanish where they are below",
            "8.7.1-linear": "after normalisation the chain is linear in its last weight, and the "
            "lower ones have no effect",
            "8.7.1-restore": "γH′ + β gives back the expressive power with a mean that is one "
            "parameter",
            "8.7.1-helps": "a normalised network is easier to train",
        },
        make=chain,
        code="""
            import torch
            from kobai.models import BatchNorm
            from kobai import seeds

            x = torch.randn(1000, 1, generator=seeds.generator(0, "x")).double()
            layer = BatchNorm(1).double()
            for w in (0.1, 1.0, 10.0):
                h = layer(w * x)
                print(f"w = {w}: deviation {float((w * x).std()):.2f} -> {h.std().item():.2f}")
        """,
    ),
)
