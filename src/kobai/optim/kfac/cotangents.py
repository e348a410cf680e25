"""What is pulled back through a network to see its Fisher matrix: labels without targets.

An ordinary training loop does not show the optimizer the targets. It does not have to: the true
Fisher matrix takes labels from the model's own predictive distribution, and of the targets it needs
only which terms are ignored. Those are found where the gradient that arrives at the outputs is
exactly zero.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from kobai.problem import Likelihood

Labels = Literal["sampled", "exact", "observed"]


def cotangents(
    likelihood: Likelihood,
    labels: Labels,
    outputs: Tensor,
    gradient: Tensor,
    *,
    damping: float,
    generator: torch.Generator,
    signs: bool,
) -> tuple[float, Iterator[Tensor]]:
    """Vectors u in output space with Σ u uᵀ, or its expectation, = output Hessian + damping · I.

    The damping is in units of the likelihood's `scale`. For `Categorical` it acts on differences
    of logits only (I − 11ᵀ/C instead of I), as the predictions do; ignored terms have none.

    Args:
        likelihood: What the outputs mean.
        labels: "sampled": one u, the score at labels drawn from the model. "exact": as many as an
            example has outputs, columns of a factor of the Hessian. "observed": one u, the score at
            the data's labels (the empirical Fisher matrix); where labels cannot be read off the
            gradient, the gradient itself times the normaliser, which takes the user's loss to be
            the plain mean of the likelihood. With damping, noise is added to the one u, and as
            many columns again to the exact ones.
        outputs: The model's outputs, detached.
        gradient: Gradient of the user's loss in them; its scale plays no part but as said above.
        damping: Multiple of the identity added to the Hessian, not negative.
        generator: Draws labels, noise and signs.
        signs: Give every example an independent random sign, so that squares of sums over
            examples estimate sums of squares. Labels drawn at random have one already.

    Returns:
        The normaliser W (see `kobai.problem.likelihoods.likelihood`) and the cotangents.
    """
    targets = likelihood.placeholder_targets(outputs, gradient)
    weight = likelihood.weight(targets)

    root = (damping * likelihood.scale) ** 0.5

    def columns() -> Iterator[Tensor]:
        if labels == "exact":
            flat = outputs.new_zeros(outputs.shape[0], outputs[0].numel())
            for index in range(flat.shape[1]):
                flat.zero_()
                flat[:, index] = 1
                unit = flat.view(outputs.shape)
                yield likelihood.factor_product(outputs, targets, unit)
                if damping:
                    yield root * likelihood.identifiable_part(targets, unit)
            return
        if labels == "sampled":
            u = likelihood.fisher_sample(outputs, targets, generator)
        else:
            found = likelihood.hard_targets(outputs, gradient)
            residual = weight * gradient if found is None else likelihood.residual(outputs, found)
            # Labels drawn from the likelihood itself would have this scale; see fisher_sample.
            u = residual / likelihood.scale**0.5
        if damping:
            noise = torch.randn(
                outputs.shape, generator=generator, device=generator.device, dtype=outputs.dtype
            ).to(outputs.device)
            u = u + root * likelihood.identifiable_part(targets, noise)
        yield u

    def flushed() -> Iterator[Tensor]:
        # Certain predictions have scores so small that products with them are subnormal numbers,
        # which processors handle many times slower; they carry no information.
        negligible = torch.finfo(outputs.dtype).eps ** 2
        for u in columns():
            if signs and labels != "sampled":
                coins = torch.rand(
                    outputs.shape[0], generator=generator, device=generator.device
                ).to(u.device)
                shape = (-1,) + (1,) * (u.ndim - 1)
                u = u * torch.where(coins < 0.5, -1.0, 1.0).to(u.dtype).view(shape)
            yield torch.where(u.abs() < negligible, 0.0, u)

    return weight, flushed()
