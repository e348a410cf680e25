"""A module's trainable parameters as one flat vector θ, and the named blocks of that vector."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.problem.blocks import Block, BlockKind, split_blocks


class ParameterSpace:
    """The map between a module's trainable parameters and a vector θ ∈ ℝᴾ.

    Parameters that do not require a gradient are constants and stay out; a parameter used under
    several names (tied weights) counts once, under its first name. The order is that of
    `module.named_parameters()`.

    Args:
        module: Any module with at least one trainable parameter.

    Raises:
        ValueError: If nothing is trainable, parameters differ in dtype or device, are not real, or
            have no shape yet.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError(
                f"{type(module).__name__} has no trainable parameters; "
                "set requires_grad=True on those to be learned"
            )
        for name, parameter in named:
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"parameter {name} of a lazy layer has no shape yet; "
                    "run the model once on an example first"
                )
        kinds = {(p.dtype, p.device) for _, p in named}
        if len(kinds) > 1:
            raise ValueError(
                "trainable parameters must share one dtype and device, got "
                f"{sorted(f'{dtype} on {device}' for dtype, device in kinds)}; "
                "move the module with .to(dtype, device) first"
            )
        if not named[0][1].is_floating_point():
            raise ValueError(
                f"trainable parameters must be real, got {named[0][1].dtype}; "
                "hold real and imaginary parts as two parameters"
            )
        self.names = tuple(name for name, _ in named)
        self.shapes = tuple(torch.Size(parameter.shape) for _, parameter in named)
        self.sizes = tuple(parameter.numel() for _, parameter in named)
        self.dimension = sum(self.sizes)
        self._slots = _slots(module)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of θ, the module's own."""
        return self.module.get_parameter(self.names[0]).dtype

    @property
    def device(self) -> torch.device:
        """Device of θ, the module's own."""
        return self.module.get_parameter(self.names[0]).device

    def is_current(self) -> bool:
        """Whether the same parameters are trainable as when this space was made."""
        return self.names == tuple(n for n, p in self.module.named_parameters() if p.requires_grad)

    def _parameters(self) -> list[Tensor]:
        named = dict(self.module.named_parameters())
        return [named[name] for name in self.names]

    def theta(self) -> Float[Tensor, " P"]:
        """A copy of the module's parameters now, flat."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters()])

    def assign(self, theta: Float[Tensor, " P"]) -> None:
        """Write θ into the module in place.

        Raises:
            ValueError: If θ has the wrong length.
        """
        with torch.no_grad():
            for parameter, value in zip(
                self._parameters(), self.unflatten(theta).values(), strict=True
            ):
                parameter.copy_(value)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " P"]:
        """Join one tensor per parameter name into a vector.

        Raises:
            ValueError: If names are missing or unknown, or a tensor has another shape.
        """
        if set(tensors) != set(self.names):
            raise ValueError(f"expected one tensor for each of {self.names}, got {tuple(tensors)}")
        for name, shape in zip(self.names, self.shapes, strict=True):
            if tensors[name].shape != shape:
                raise ValueError(
                    f"{name} must have shape {tuple(shape)}, got {tuple(tensors[name].shape)}"
                )
        return torch.cat([tensors[name].reshape(-1) for name in self.names])

    def unflatten(self, theta: Float[Tensor, " P"]) -> dict[str, Tensor]:
        """Cut a vector into views shaped like the parameters.

        One `split` serves all parameters: its backward is one concatenation, where a slice for
        each would fill a vector of length P for each.

        Raises:
            ValueError: If θ has the wrong length.
        """
        if theta.shape != (self.dimension,):
            raise ValueError(f"theta must have shape ({self.dimension},), got {tuple(theta.shape)}")
        return {
            name: piece.view(shape)
            for name, piece, shape in zip(
                self.names, theta.split(self.sizes), self.shapes, strict=True
            )
        }

    def unflatten_columns(self, block: Float[Tensor, "P K"]) -> dict[str, Tensor]:
        """Cut K columns into tensors (K, *parameter shape).

        Raises:
            ValueError: If the block does not have P rows.
        """
        if block.ndim != 2 or block.shape[0] != self.dimension:
            raise ValueError(
                f"a block of columns must have shape ({self.dimension}, K), "
                f"got {tuple(block.shape)}"
            )
        pieces = block.T.contiguous().split(self.sizes, dim=1)
        return {
            name: piece.reshape(len(piece), *shape)
            for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)
        }

    def places(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Repeat each tensor for every place of the module tree that holds its parameter.

        `torch.func.functional_call` needs this: left to tie weights itself it swaps a submodule
        registered under two names twice, and afterwards the module keeps the swapped tensors.
        """
        return {place: tensor for n, tensor in parameters.items() for place in self._slots[n]}

    def blocks(self, by: BlockKind) -> tuple[Block, ...]:
        """The blocks of θ, which together hold every coordinate once.

        Args:
            by: "parameter", one block each; "layer", all parameters of one module; "unit", what
                feeds one output unit or channel (its weights and its bias; for scale-and-shift
                layers, its scale and shift; for gates of recurrent layers, the weights from below
                and from the step before); "filter", the weights of one output unit or channel
                alone, with every scale, shift and bias vector as one block.

        Raises:
            ValueError: If `by` is none of these.
        """
        return split_blocks(self.module, dict(zip(self.names, self.shapes, strict=True)), by)


def _slots(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each parameter's first name, all places that hold it; every submodule visited once."""
    found: dict[int, list[str]] = {}
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(id(parameter), []).append(f"{path}.{name}" if path else name)
    return {places[0]: tuple(places) for places in found.values()}
