"""Read model files, and the second moments that Adam keeps beside a model."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kobai.cli.options import UsageError
from kobai.curvature import AdamPoint, Fisher, adam_diagonal
from kobai.problem import EmpiricalRisk, ParameterSpace
from kobai.training.checkpoint import Archive, load_into

_MODELS = ("model", "state_dict", "model_state_dict")
_OPTIMIZERS = ("optimizer", "optimizer_state_dict")


def read_model_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Read a model's tensors by name: safetensors, or a torch file of tensors.

    A torch file may hold the model under "model", "state_dict" or "model_state_dict", and beside it
    its optimizer's state.

    Returns:
        The tensors, and the optimizer's state_dict where the file has one.

    Raises:
        UsageError: If the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(path.read_bytes()), None
        # Weights only: a checkpoint must not be able to run code.
        found: Any = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise UsageError(
            f"{path}: cannot be read, not a checkpoint of tensors ({type(error).__name__}); "
            "save a state_dict"
        ) from None
    optimizer = None
    if isinstance(found, dict):
        optimizer = next((found[k] for k in _OPTIMIZERS if isinstance(found.get(k), dict)), None)
        found = next((found[k] for k in _MODELS if isinstance(found.get(k), dict)), found)
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UsageError(f"{path}: holds no tensors by name (a module's state_dict)")
    return found, optimizer


def load_file(path: Path, model: nn.Module) -> dict[str, Any] | None:
    """Load a model file into a module.

    Args:
        path: Ends in .safetensors, .pt, .pth or .bin.
        model: Built like the one that was saved; written in place.

    Returns:
        The optimizer's state_dict, where the file has one.

    Raises:
        UsageError: If the file is missing, damaged or of another kind.
        ValueError: If it fits another model.
    """
    if path.is_file() and path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise UsageError(f"--checkpoint {path}: give a .safetensors, .pt, .pth or .bin file")
    tensors, optimizer = read_model_file(path)
    load_into(model, tensors, where=path)
    return optimizer


def adam_of_run(folder: Path, space: ParameterSpace) -> AdamPoint | None:
    """What Adam divides by at a run's latest checkpoint; None where another optimizer ran.

    Args:
        folder: The run's checkpoint folder.
        space: The parameters of its model.
    """
    read = Archive(folder).read()
    return None if read is None else adam_of_state(read[1].get("optimizer"), space)


def adam_of_state(state: dict[str, Any] | None, space: ParameterSpace) -> AdamPoint | None:
    """The same from an optimizer's state_dict; None where it is not Adam's."""
    memories = list((state or {}).get("state", {}).values())
    if not memories or not all(isinstance(m, dict) and "exp_avg_sq" in m for m in memories):
        return None
    assert state is not None
    parameters = list(space.module.parameters())
    if sum(len(group["params"]) for group in state["param_groups"]) != len(parameters):
        parameters = [p for p in parameters if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for group in state["param_groups"]:
        count = len(group["params"])
        groups.append({"params": parameters[:count]})
        parameters = parameters[count:]
    optimizer = torch.optim.Adam(groups)
    optimizer.load_state_dict(state)
    return AdamPoint(
        diagonal=adam_diagonal(optimizer, space),
        beta1=float(optimizer.param_groups[0]["betas"][0]),
        source="its second moments",
    )


def adam_of_gradients(objective: EmpiricalRisk, epsilon: float = 1e-8) -> AdamPoint:
    """What Adam would divide by after many steps of one example each, at β₁ = 0.9.

    It is the root mean square of the examples' gradients: larger batches have smaller second
    moments, down to the square of the mean gradient.
    """
    moment = Fisher(objective, "diagonal", labels="observed").diagonal()
    return AdamPoint(diagonal=moment.sqrt() + epsilon, beta1=0.9, source="single-example gradients")
