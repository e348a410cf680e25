"""The fields a landscape can have: their names, what each needs, and how to measure them all."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from kobai.curvature import Hessian, eigenvalues
from kobai.landscape.backends.evaluator import Evaluator, RiskEvaluator
from kobai.landscape.backends.loop import Point
from kobai.landscape.derivatives import plane_eigenvalues, projected_hessian, slopes
from kobai.landscape.directions.subspace import Directions
from kobai.linalg import Lanczos
from kobai.problem import Objective

AXES = "abc"

VALUE_FIELDS = ("loss", "stderr", "accuracy")
CLASS_FIELD = "class_loss"
SPECTRUM_FIELDS = ("hessian_min", "hessian_max")


def slope_fields(count: int) -> tuple[str, ...]:
    """Fields of one backward pass: the norm of ∇L, and ∇L·d along each of `count` directions."""
    return ("gradient_norm", *(f"slope_{axis}" for axis in AXES[:count]))


def hessian_fields(count: int) -> tuple[str, ...]:
    """Fields of the Hessian in the subspace: dᵢᵀHdⱼ, row by row, then its extreme eigenvalues."""
    pairs = [AXES[i] + AXES[j] for i in range(count) for j in range(i, count)]
    return (*(f"curvature_{pair}" for pair in pairs), "curvature_min", "curvature_max")


def all_fields(count: int) -> tuple[str, ...]:
    """Every name that `fields` may hold for a subspace of `count` directions."""
    return (
        *VALUE_FIELDS,
        CLASS_FIELD,
        *slope_fields(count),
        *hessian_fields(count),
        *SPECTRUM_FIELDS,
    )


def positive_field(name: str) -> bool:
    """Whether a field is a loss, of which relative errors are meaningful."""
    return "loss" in name


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to measure at every node.

    Attributes:
        names: Fields to keep, in order, those of other splits and of classes spelled out.
        slopes: Whether a backward pass is needed.
        hessian: Whether products with the Hessian are needed.
        spectrum: Whether the Hessian's extreme eigenvalues in all of parameter space are.
    """

    names: tuple[str, ...]
    slopes: bool
    hessian: bool
    spectrum: bool

    @property
    def derivatives(self) -> bool:
        """Whether anything but values is needed."""
        return self.slopes or self.hessian or self.spectrum


def resolve(
    fields: Sequence[str] | None,
    evaluator: Evaluator,
    others: Mapping[str, Evaluator],
    *,
    count: int,
) -> Wanted:
    """Check the fields asked for and spell them out; the loss comes first if it was not named.

    Raises:
        ValueError: If a field is unknown or has no meaning for the objective.
        TypeError: If a single string is given.
    """
    of_data = isinstance(evaluator, RiskEvaluator)
    if isinstance(fields, str):
        raise TypeError(f"fields must be a sequence of names, such as ({fields!r},)")
    if fields is None:
        fields = ("loss", "accuracy") if of_data and evaluator.has_accuracy() else ("loss",)
    known = all_fields(count)
    unknown = [name for name in fields if name not in known]
    if unknown:
        if count < 3 and not set(unknown) - set(all_fields(3)):
            what = "line has no second" if count == 1 else "plane has no third"
            raise ValueError(f"a {what} direction, got fields={tuple(fields)}")
        raise ValueError(f"unknown fields {unknown}; a landscape can have {', '.join(known)}")
    if not of_data and {"accuracy", "stderr", CLASS_FIELD} & set(fields):
        raise ValueError(
            "accuracy, stderr and class_loss need an EmpiricalRisk; leave them out of fields"
        )
    if of_data and "accuracy" in fields and not evaluator.has_accuracy():
        raise ValueError("this likelihood has no accuracy; leave it out of fields")
    names: list[str] = ["loss"]
    for name in fields:
        if name == CLASS_FIELD:
            names += [f for f in evaluator.fields if f.startswith(CLASS_FIELD)]
        else:
            names.append(name)
    for split, other in others.items():
        kept = [f for f in names if f in other.fields]
        names += [f"{split}_{f}" for f in kept]
    return Wanted(
        names=tuple(dict.fromkeys(names)),
        slopes=any(name in slope_fields(count) for name in fields),
        hessian=any(name in hessian_fields(count) for name in fields),
        spectrum=any(name in SPECTRUM_FIELDS for name in fields),
    )


@final
class FieldEvaluator(Evaluator):
    """All wanted fields at a point: values, values on other splits, slopes, curvatures.

    Args:
        evaluator: Measures the objective.
        objective: The same objective in chunks that are fast to differentiate.
        directions: The subspace.
        wanted: What to measure.
        others: Split to its evaluator.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        objective: Objective,
        directions: Directions,
        wanted: Wanted,
        others: Mapping[str, Evaluator],
    ) -> None:
        self.name = evaluator.name
        self.evaluator, self.directions, self.objective = evaluator, directions, objective
        self.wanted, self.others = wanted, dict(others)
        self._gram = directions.gram()
        names = list(evaluator.fields)
        for split, other in self.others.items():
            names += [f"{split}_{field}" for field in other.fields]
        if wanted.slopes:
            names += slope_fields(directions.count)
        if wanted.hessian:
            names += hessian_fields(directions.count)
        if wanted.spectrum:
            names += SPECTRUM_FIELDS
        # Only what is kept is stored, exchanged between processes and interpolated.
        self._columns = [names.index(name) for name in wanted.names]
        self.fields = wanted.names

    def measure(self, points: Sequence[Point]) -> Tensor:
        """See `Evaluator.measure`."""
        columns = [self.evaluator.measure(points)]
        columns += [other.measure(points) for other in self.others.values()]
        if self.wanted.slopes:
            columns.append(torch.stack([self._slopes(point) for point in points]))
        if self.wanted.hessian:
            columns.append(torch.stack([self._hessian(point) for point in points]))
        if self.wanted.spectrum:
            columns.append(torch.stack([self._spectrum(point) for point in points]))
        return torch.cat(columns, dim=1)[:, self._columns]

    def _slopes(self, point: Point) -> Tensor:
        theta = self.directions.at(point)
        _, along, norm = slopes(self.objective, theta, self.directions.vectors)
        return torch.cat((along.new_tensor([norm]), along))

    def _hessian(self, point: Point) -> Tensor:
        theta = self.directions.at(point)
        matrix = projected_hessian(self.objective, theta, self.directions.vectors)
        extremes = plane_eigenvalues(matrix, self._gram)
        row, column = torch.triu_indices(len(matrix), len(matrix))
        return torch.cat((matrix[row, column], extremes[[0, -1]]))

    def _spectrum(self, point: Point) -> Tensor:
        theta = self.directions.at(point)
        found = eigenvalues(
            Hessian(self.objective, theta),
            min(2, len(theta)),
            which="both",
            tol=1e-3,
            # Further copies of an eigenvalue do not move the extremes.
            method=Lanczos(probe="none") if len(theta) > 32 else "auto",
            # The starting vector is the same at every node, so that maps are repeatable.
            generator=torch.Generator().manual_seed(0),
        )
        values = torch.as_tensor(found.values, dtype=torch.float64).cpu()
        if len(values) == 0:
            return torch.full((2,), float("nan"), dtype=torch.float64)
        return values[[0, -1]]
