"""The interface of layer kinds: what one is recognised by, its matrices, and its calls as rows.

Most kinds multiply vectors by matrices (`MatrixKind`). Attention and recurrent layers do so
somewhere inside, out of sight of hooks (`CompositeKind`). Normalisations end with a scale and a
shift for each unit (`ScaleKind`).
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from kobai.layers.form import LayerForm, Slot


class Reading(ABC):
    """A way to read the inputs and output gradients of a layer's calls as rows (interface).

    Attributes:
        axes: Axes of an input that has one for examples, without places.
        channel_axis: Axis of the products in output gradients (Q, N, …).
        taps: Rows' entries per entry of the input (positions of a convolution's kernel; else 1).
        worth_rounding: Whether rounding rows to bfloat16 saves more time than it takes.
    """

    axes: int
    channel_axis: int
    taps: int
    worth_rounding: bool

    @abstractmethod
    def input_rows(self, inputs: Tensor, examples: int) -> Float[Tensor, "G E T K"] | None:
        """Arrange the vectors that are multiplied by example and place.

        Args:
            inputs: What the layer was called with; the first axis holds the examples in order,
                perhaps with places inside each.
            examples: E.

        Returns:
            A row for each place; None if the examples do not divide the inputs.
        """

    @abstractmethod
    def gradient_rows(
        self, gradients: Float[Tensor, "Q *output"], examples: int
    ) -> Float[Tensor, "G E Q T M"] | None:
        """Arrange gradients in the output like `input_rows`; None if the examples do not divide."""

    @abstractmethod
    def input_moment(self, form: LayerForm, inputs: Tensor) -> tuple[Tensor, int]:
        """Sum a aᵀ over all rows of a call.

        Args:
            form: The form of the matrices.
            inputs: What the layer was called with.

        Returns:
            The sum (not divided), (G, K, K), and the number of rows R = examples times places; for
            a table the counts of its lines, (V,).
        """

    @abstractmethod
    def output_moment(self, form: LayerForm, gradients: Tensor) -> Float[Tensor, "G M M"]:
        """Sum g gᵀ over all rows of a call, not divided.

        Args:
            form: The form of the matrices.
            gradients: Gradients in the products, with any axes in front.
        """


class LayerKind(ABC):
    """A kind of layer (interface).

    Attributes:
        name: Such as "linear".
        types: Classes of modules whose parameters are laid out as those of this kind.
        unit_families: Tells apart, by its first group, parameters of one layer that have as many
            units but feed different ones; None where there are none.
    """

    name: ClassVar[str]
    types: tuple[type[nn.Module], ...]
    unit_families: ClassVar[re.Pattern[str] | None] = None

    @abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Tell whether a module computes what layers of this kind do."""

    @abstractmethod
    def slots(self, module: Any) -> tuple[Slot, ...]:
        """Name the matrices of a module that matches; none for normalisations."""


class MatrixKind(LayerKind):
    """A kind of layer that multiplies by one weight and does nothing else (interface)."""

    @abstractmethod
    def reading(self, module: Any) -> Reading:
        """The way to read calls of a module as rows."""

    @abstractmethod
    def multiplied(self, module: Any, inputs: Tensor) -> Tensor:
        """The inputs of a call as they meet the weight, with any scale of the layer's own."""


class CompositeKind(LayerKind):
    """A kind of layer that multiplies by its matrices somewhere inside (interface).

    Attributes:
        one_step: Whether a call is one step of a recurrence, so that repeated calls are places.
    """

    one_step: ClassVar[bool]

    @abstractmethod
    def replay(
        self, module: Any, parameters: dict[str, Tensor], arguments: dict[str, Any]
    ) -> tuple[Any, list[Any]]:
        """Evaluate a module in steps that show every product.

        Args:
            module: The layer.
            parameters: Its parameters by their names in it.
            arguments: Arguments by the names of its forward method.

        Returns:
            The outputs as the module returns them, and its products
            (`kobai.layers.composite.Product`) in the order in which they were made.
        """


class ScaleKind(LayerKind):
    """A kind of layer that ends with a scale and a shift for each unit (interface)."""

    @abstractmethod
    def rows(
        self, module: Any, names: Sequence[str], inputs: Tensor, gradients: Tensor, examples: int
    ) -> Float[Tensor, "E Q U k"] | None:
        """Per-example gradients of scale and shift, side by side; None if examples do not divide.

        Args:
            module: A module that matches.
            names: Which of "weight" and "bias" in what order; their number is k.
            inputs: What it was called with.
            gradients: Gradients in its output, (Q, *output).
            examples: E.
        """


def unchanged(
    module: nn.Module, types: Sequence[type[nn.Module]], methods: Sequence[str] = ("forward",)
) -> bool:
    """Tell whether a module computes what one of these classes does, overriding no method."""
    own = type(module)
    return any(
        isinstance(module, kind)
        and all(getattr(own, name, None) is getattr(kind, name, None) for name in methods)
        for kind in types
    )
