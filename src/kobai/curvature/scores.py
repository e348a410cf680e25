"""The vectors that are pulled back through a network: the columns of its output metric.

Every Fisher matrix of kobai is F = (1/W) Σ (Jₙᵀu)(Jₙᵀu)ᵀ over examples n and a few cotangents u per
example; W is the objective's normaliser. What u is, is the kind of Fisher matrix.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.problem import Likelihood

Labels = Literal["exact", "sampled", "observed"]

Cotangents = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) of one batch ↦ cotangents (Q, N, *outputs)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """The cotangents of a kind of Fisher matrix, the same at every pass over the data.

    Attributes:
        likelihood: What outputs mean.
        labels: "exact": a factor of the output Hessian, so that Σ u uᵀ is the expectation over the
            model's own labels (as many as an example has outputs; ignored terms give zeros).
            "sampled": scores at labels drawn from the model, `samples` each. "observed": the score
            at the data's own labels, one an example: the empirical Fisher matrix, which is the
            uncentred covariance of the examples' gradients. It is not an estimate of the Fisher
            matrix. In the scale of the others: for a likelihood with a `scale`, that covariance
            divided by `scale`. "outputs": unit vectors, whatever the likelihood: rows of the plain
            Jacobian.
        samples: Draws an example for "sampled".
        seed: Of the draws.
    """

    likelihood: Likelihood
    labels: Labels | Literal["outputs"]
    samples: int = 1
    seed: int = 0

    def count(self, outputs_per_example: int) -> int:
        """Q, the number of cotangents an example."""
        if self.labels == "sampled":
            return self.samples
        return 1 if self.labels == "observed" else outputs_per_example

    def start(self) -> Cotangents:
        """Begin a pass over the data; batches must then come in the objective's order."""
        generator = torch.Generator().manual_seed(self.seed)
        return lambda outputs, targets: self._of(outputs.detach(), targets, generator)

    def _of(
        self, outputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Float[Tensor, "Q N *outputs"]:
        if self.labels == "observed":
            score = self.likelihood.residual(outputs, targets) / self.likelihood.scale**0.5
            return score.unsqueeze(0)
        if self.labels == "sampled":
            draws = [
                self.likelihood.fisher_sample(outputs, targets, generator)
                for _ in range(self.samples)
            ]
            return torch.stack(draws) / self.samples**0.5
        size = outputs[0].numel()
        units = torch.eye(size, dtype=outputs.dtype, device=outputs.device)
        units = units.view(size, 1, *outputs.shape[1:]).expand(-1, *outputs.shape)
        if self.labels == "outputs":
            return units.clone()
        return torch.stack(
            [self.likelihood.factor_product(outputs, targets, unit) for unit in units]
        )
