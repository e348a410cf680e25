"""Deep linear networks of one shape as one stack, through the maps that they are.

f(x) = P_L … P_1 x needs no hidden layers: with the maps L_k = P_L … P_{k+1} from layer k to the
outputs, and H_0 = Σ r xᵀ over the batch, H_k = H_{k−1} P_kᵀ, the gradient in layer k is
L_kᵀ H_{k−1}, a product of rank C. Only outputs and H_0 take work that grows with the batch: on
784-100×5-10 at batch 256 a gradient has a tenth of the usual multiplications.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.studies.stacked import Design, Gradient, adds, with_one


@dataclasses.dataclass(eq=False)
class LinearPass:
    """A forward pass of T linear networks.

    Attributes:
        inputs: The batch, (B, d) or with a constant one (B, d + 1).
        maps: P_k of each layer, (T, M, K); with biases also a row that hands the one on.
        to_outputs: L_k from each layer's output to the networks', (T, C, M).
        outputs: (T, B, C).
    """

    inputs: Tensor
    maps: list[Tensor]
    to_outputs: list[Tensor]
    outputs: Float[Tensor, "T B C"]


@dataclasses.dataclass(eq=False)
class LinearStack:
    """T networks without activations; the same as `kobai.studies.stacked.Stack` up to rounding.

    Attributes:
        design: The computation.
        weights: One (T, M, K) tensor a layer.
    """

    design: Design
    weights: list[Tensor]

    def forward(self, x: Float[Tensor, "B d"]) -> LinearPass:
        """Run all networks on the same inputs. Cost: B C d multiplications a network."""
        maps = [self._map(index) for index in range(len(self.weights))]
        count, classes, _ = self.weights[-1].shape
        left = torch.eye(classes, maps[-1].shape[1]).to(maps[-1]).expand(count, -1, -1)
        to_outputs = []
        for p in reversed(maps):
            to_outputs.append(left)
            left = torch.bmm(left, p)
        inputs = with_one(x) if self.design.bias else x
        flat = inputs @ left.flatten(0, 1).T
        outputs = flat.view(len(x), count, classes).transpose(0, 1)
        return LinearPass(inputs, maps, to_outputs[::-1], outputs)

    def gradients(self, run: LinearPass, cotangent: Float[Tensor, "T B C"]) -> list[Gradient]:
        """Gradients of ⟨cotangent, outputs⟩ in every layer's matrix, of rank C."""
        count, size, classes = cotangent.shape
        flat = cotangent.transpose(0, 1).reshape(size, count * classes)
        right = (flat.T @ run.inputs).view(count, classes, -1)
        found = []
        for weight, p, left in zip(self.weights, run.maps, run.to_outputs, strict=True):
            found.append(Gradient(left=left[:, :, : weight.shape[1]], right=right))
            right = torch.bmm(right, p.mT)
        return found

    def moments(
        self, run: LinearPass, cotangent: Float[Tensor, "T B C"], weight: float
    ) -> list[tuple[Tensor, Tensor]]:
        """See `kobai.studies.stacked.Stack.moments`: both follow from those at the two ends."""
        x = run.inputs
        ends = torch.bmm(cotangent.mT, cotangent) / weight
        a: Tensor = x.T @ x / len(x)
        found = []
        for index, (own, p, left) in enumerate(
            zip(self.weights, run.maps, run.to_outputs, strict=True)
        ):
            left = left[:, :, : own.shape[1]]
            found.append((a, torch.bmm(left.mT, torch.bmm(ends, left))))
            if index == 0 and len(x) < x.shape[1]:
                # Examples by all units of all networks at once.
                h = (x @ p.flatten(0, 1).T).view(len(x), *p.shape[:2]).transpose(0, 1)
                a = torch.bmm(h.mT, h) / len(x)
            else:
                a = p @ a @ p.mT
        return found

    def _map(self, index: int) -> Tensor:
        """What a layer does to its inputs, skip and constant one included."""
        weight = self.weights[index]
        if adds(self.design, self.weights, index):
            weight = weight + torch.eye(*weight.shape[1:]).to(weight)
        if self.design.bias:
            one = weight.new_zeros(len(weight), 1, weight.shape[2])
            one[:, :, -1] = 1.0
            weight = torch.cat([weight, one], dim=1)
        return weight
