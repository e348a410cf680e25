"""A recurrent classifier of sequences; an image is read row by row."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.models.init import PLAIN_INITS, Init, PlainInitName, initialize, materialize
from kobai.models.validation import require_choice, require_outputs, require_positive

__all__ = ["LSTM", "LSTMConfig"]


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """A recurrent network with long short-term memory."""

    hidden: int = 128
    """units of each layer"""
    layers: int = 1
    """recurrent layers on top of each other"""
    init: PlainInitName = "glorot-uniform"
    """law of the initial weights; each gate is a matrix of its own"""
    forget_bias: float = 1.0
    """initial bias of the forget gate; 1 lets memory last from the start"""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require_positive("hidden", self.hidden)
        require_positive("layers", self.layers)
        require_choice("init", self.init, PLAIN_INITS)
        _ = self.law

    @property
    def law(self) -> Init:
        """The initialisation these fields describe."""
        return Init(name=self.init, activation="tanh")


class LSTMLayer(nn.Module):
    """One recurrent layer; the gates lie in the order input, forget, cell, output.

    It is two dense layers and elementwise functions, so that every derivative exists (forward mode,
    second order, batched), which fused recurrent kernels do not offer, and methods that see dense
    layers see these.

    Args:
        inputs: Size of the input at each step.
        hidden: Units.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(inputs, 4 * hidden)
        self.recurrent = nn.Linear(hidden, 4 * hidden, bias=False)

    def forward(self, x: Float[Tensor, "N T inputs"]) -> Float[Tensor, "N T hidden"]:
        """Return the hidden state after every step, from an initial state of zeros."""
        driven = self.inputs(x)
        h = c = x.new_zeros(x.shape[0], self.recurrent.in_features)
        states = []
        for u in driven.unbind(1):
            i, f, g, o = (u + self.recurrent(h)).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        return torch.stack(states, 1)


class LSTM(nn.Module):
    """Recurrent layers, then a dense layer on the state after the last step.

    Args:
        config: Sizes and initialisation.
        input_shape: (steps, features), or (channels, height, width) for an image, which is read
            as `height` steps of channels · width features.
        num_outputs: C.
        generator: Source of the parameters.
        dtype: Type of the parameters; None is PyTorch's default.
        device: Device of the parameters; None is PyTorch's default.

    Raises:
        ValueError: If the inputs are neither sequences nor images.

    Source: Hochreiter & Schmidhuber 1997 with the forget gate of Gers, Schmidhuber & Cummins 2000.
    """

    def __init__(
        self,
        config: LSTMConfig,
        *,
        input_shape: Sequence[int],
        num_outputs: int,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        require_outputs(input_shape, num_outputs)
        if len(input_shape) not in {2, 3}:
            raise ValueError(
                "lstm reads sequences (steps, features) or images (channels, height, width), got "
                f"input_shape {tuple(input_shape)}; reshape the inputs or use the mlp family"
            )
        features = input_shape[-1] * (input_shape[0] if len(input_shape) == 3 else 1)
        sizes = [features, *[config.hidden] * config.layers]
        with torch.device("meta"):
            self.layers = nn.Sequential(*(LSTMLayer(m, n) for m, n in pairwise(sizes)))
            self.output = nn.Linear(config.hidden, num_outputs)
        materialize(self, dtype=dtype, device=device)
        gates = {name: 4 for name, _ in self.layers.named_parameters("layers") if "weight" in name}
        initialize(self, config.law, generator=generator, blocks=gates)
        forget = slice(config.hidden, 2 * config.hidden)
        for name, parameter in self.layers.named_parameters():
            if name.endswith("inputs.bias"):
                parameter.detach()[forget] = config.forget_bias

    def forward(self, x: Float[Tensor, "N *shape"]) -> Float[Tensor, "N C"]:
        """Map a batch of sequences or images to outputs."""
        sequence = x.transpose(1, 2).flatten(2) if x.ndim == 4 else x
        return self.output(self.layers(sequence)[:, -1])
