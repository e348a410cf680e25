"""The running statistics that batch normalisation uses away from the trained point.

A loss surface moves the weights, but the running mean and variance of a batch-normalisation layer
are no parameters. There are three answers.

- "frozen" (the default): the statistics stay as training left them. The surface is then that of one
  fixed function of θ, the one whose gradient and Hessian everything else in kobai measures, at no
  further cost. Far from the origin activations drift off their statistics, so the surface rises
  faster than a network that would be deployed there.
- "recalibrated": at every node the statistics are estimated anew from all of the data before the
  loss is. That is the network as one would deploy it (weights whose statistics were updated, as
  for averaged weights); it takes two passes over the data a node.
- "interpolated": the statistics of given checkpoints are interpolated with the weights, means
  linearly and variances in logarithm, so that they stay positive. Exact at the checkpoints.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kobai.landscape.backends.data import Chunk
from kobai.landscape.backends.interface import Treatment
from kobai.landscape.backends.passes import Point
from kobai.landscape.directions.subspace import Directions
from kobai.landscape.options import Statistics
from kobai.layers.stock import running_statistics
from kobai.problem import EmpiricalRisk, ParameterSpace
from kobai.problem.calling import call_arguments


def _layers(model: nn.Module, mode: str) -> dict[str, nn.Module]:
    layers = running_statistics(model)
    if not layers:
        raise ValueError(
            f"batchnorm={mode!r} needs a layer with running statistics, and the model has none; "
            "leave it out"
        )
    return layers


@contextlib.contextmanager
def lent_statistics(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Give layers copies of their running statistics; their own come back, the same tensors."""
    own = {path: dict(layer._buffers) for path, layer in layers.items()}
    try:
        for layer in layers.values():
            for name, buffer in layer._buffers.items():
                layer._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for path, layer in layers.items():
            layer._buffers.update(own[path])


def _restart(layer: nn.Module) -> None:
    """Let a layer average the statistics of all batches that come from now on, each equally."""
    layer.running_mean.zero_()  # type: ignore[operator]
    layer.running_var.fill_(1.0)  # type: ignore[operator]
    layer.num_batches_tracked.zero_()  # type: ignore[operator]
    layer.training, layer.momentum = True, None  # type: ignore[assignment]


@final
class Recalibrated(Treatment):
    """Estimates statistics anew at each point from the chunks, in a pass of its own.

    Each chunk counts equally, as in torch's layers with ``momentum=None``; a last chunk that is
    smaller counts like the others, so chunks of one size are best.

    Raises:
        ValueError: If no layer keeps running statistics.
    """

    name = "loop, statistics recalibrated"

    def __init__(self, objective: EmpiricalRisk) -> None:
        self.objective = objective
        self.layers = _layers(objective.model, "recalibrated")

    def during(self) -> contextlib.AbstractContextManager[None]:
        """See `Treatment.during`."""
        return lent_statistics(self.layers)

    def move(self, point: Point, parameters: Mapping[str, Tensor], chunks: Sequence[Chunk]) -> None:
        """See `Treatment.move`."""
        layers = self.layers.values()
        before = [(layer.training, layer.momentum) for layer in layers]
        try:
            for layer in layers:
                _restart(layer)
            places = self.objective.space.places(parameters)
            for chunk in chunks:
                args, kwargs = call_arguments(chunk.batch)
                functional_call(self.objective.model, places, args, kwargs, tie_weights=False)
        finally:
            for layer, (training, momentum) in zip(layers, before, strict=True):
                layer.training, layer.momentum = training, momentum  # type: ignore[assignment]


@final
class Interpolated(Treatment):
    """Interpolates statistics between those of marked points.

    Args:
        objective: The empirical risk.
        directions: The subspace with its marked points.
        statistics: Label of at least two marked points to the buffers of the model there. Between
            them statistics are the affine function of the coordinates that agrees with all of them
            (least squares where they are too many) and does not change in directions they do not
            tell apart.

    Raises:
        ValueError: If the layers, labels or buffers do not fit.
    """

    name = "loop, statistics interpolated"

    def __init__(
        self, objective: EmpiricalRisk, directions: Directions, statistics: Statistics
    ) -> None:
        self.layers = _layers(objective.model, "interpolated")
        unknown = sorted(set(statistics) - set(directions.points))
        if len(statistics) < 2 or unknown:
            raise ValueError(
                "batchnorm='interpolated' needs statistics= of at least two marked points "
                f"({', '.join(directions.points) or 'there are none'}), got "
                f"{', '.join(statistics) or 'none'}"
            )
        places = torch.tensor([directions.points[k] for k in statistics], dtype=torch.float64)
        design = torch.cat((torch.ones(len(places), 1, dtype=torch.float64), places), dim=1)
        inverse = torch.linalg.pinv(design)
        self._maps: dict[tuple[str, str], Tensor] = {}
        for path in self.layers:
            for name in ("running_mean", "running_var"):
                key = f"{path}.{name}" if path else name
                missing = [label for label, buffers in statistics.items() if key not in buffers]
                if missing:
                    raise ValueError(f"the statistics of {missing[0]!r} hold no {key}")
                values = torch.stack([b[key].detach().double().cpu() for b in statistics.values()])
                values = values.log() if name == "running_var" else values
                self._maps[path, name] = inverse @ values

    def during(self) -> contextlib.AbstractContextManager[None]:
        """See `Treatment.during`."""
        return lent_statistics(self.layers)

    def move(self, point: Point, parameters: Mapping[str, Tensor], chunks: Sequence[Chunk]) -> None:
        """See `Treatment.move`."""
        for name, value in self.buffers_at(point).items():
            path, _, last = name.rpartition(".")
            getattr(self.layers[path], last).copy_(value)

    def buffers_at(self, point: Point) -> dict[str, Tensor]:
        """Interpolate the statistics; by name, float64 on the CPU."""
        place = torch.tensor((1.0, *point), dtype=torch.float64)
        found = {}
        for (path, name), coefficients in self._maps.items():
            value = place @ coefficients
            key = f"{path}.{name}" if path else name
            found[key] = value.exp() if name == "running_var" else value
        return found


def plain_loss(objective: EmpiricalRisk, theta: Tensor, buffers: Mapping[str, Tensor]) -> float:
    """Compute the loss of a copy of the model with these parameters and buffers, torch's way."""
    model = copy.deepcopy(objective.model)
    space = ParameterSpace(model)
    space.assign(theta)
    with torch.no_grad():
        for name, value in buffers.items():
            model.get_buffer(name).copy_(value)
        batches = tuple(objective.batches)
        return float(EmpiricalRisk(model, objective.likelihood, batches).value(theta))


def recalibrated_statistics(
    objective: EmpiricalRisk, theta: Tensor, chunks: Sequence[Chunk]
) -> dict[str, Tensor]:
    """Gather running statistics by calling a copy of the model natively on chunks."""
    model = copy.deepcopy(objective.model)
    ParameterSpace(model).assign(theta)
    model.eval()
    with torch.no_grad():
        for layer in running_statistics(model).values():
            _restart(layer)
        for chunk in chunks:
            args, kwargs = call_arguments(chunk.batch)
            model(*args, **kwargs)
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    }
