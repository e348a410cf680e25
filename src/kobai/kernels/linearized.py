"""The network that is linear in its parameters: f(θ₀) + J (θ − θ₀)."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from kobai.problem import EmpiricalRisk, evaluation_mode, output_tensor, require_pure


@final
class LinearizedModel(nn.Module):
    """x ↦ f(x; θ₀) + J(x; θ₀) (θ − θ₀), trained like any module; θ starts at θ₀.

    Parameters have the model's names with "." replaced by "/". Evaluation costs about two forward
    passes (forward-mode derivatives).

    Args:
        model: A module that is a function of its parameters; it is kept and not changed.

    Raises:
        ValueError: If the module is not a function of θ, naming what in it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        require_pure(model)
        # Outside the module tree: the model's own parameters are constants here.
        object.__setattr__(self, "_model", model)
        self._names: dict[str, str] = {}
        self._origin: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            own = name.replace(".", "/")
            self._names[own] = name
            self._origin[name] = parameter.detach().clone()
            self.register_parameter(own, nn.Parameter(parameter.detach().clone()))

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Outputs of the linearised network."""
        model: nn.Module = self._model  # pyright: ignore[reportAssignmentType]
        state: Mapping[str, Tensor] = {
            **{name: p.detach() for name, p in model.named_parameters()},
            **{name: buffer.clone() for name, buffer in model.named_buffers()},
        }
        own = dict(self.named_parameters())
        moved = {name: own[key] - self._origin[name] for key, name in self._names.items()}

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            found = functional_call(model, {**state, **parameters}, inputs, named)
            return output_tensor(found)

        with (
            evaluation_mode(model),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            value, change = jvp(outputs, (self._origin,), (moved,))[:2]
        return value + change


def linearize(objective: EmpiricalRisk) -> EmpiricalRisk:
    """The same risk of the linearised network: its tangent kernel never changes.

    Args:
        objective: The network, its likelihood and data, at the module's parameters now.

    Returns:
        A risk whose ``model`` is a `LinearizedModel` at θ₀, with the same batches. Training it is
        kernel regression: it follows `KernelRegression.training` exactly.

    Raises:
        TypeError: If the objective has no network outputs.
        ValueError: If the module is not a function of θ, or the objective is coupled.
    """
    if not isinstance(objective, EmpiricalRisk):
        raise TypeError(
            f"only a network's risk can be linearised, got {type(objective).__name__}; make one "
            "by Problem(...).objective()"
        )
    if objective.coupled:
        raise ValueError("a coupled objective cannot be linearised example by example")
    return EmpiricalRisk(LinearizedModel(objective.model), objective.likelihood, objective.batches)
