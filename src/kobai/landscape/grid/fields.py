"""The fields a landscape can have: their names, what each needs, and how to measure them all."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from kobai.curvature import Hessian, eigenvalues
from kobai.landscape.backends.choice import Choice
from kobai.landscape.backends.evaluator import Evaluator, ObjectiveEvaluator, RiskEvaluator
from kobai.landscape.backends.passes import Point
from kobai.landscape.derivatives import plane_eigenvalues, projected_hessian, slopes
from kobai.landscape.directions.subspace import Directions
from kobai.landscape.options import CLASS_FIELD, Settings
from kobai.linalg import Lanczos

AXES = "abc"

VALUE_FIELDS = ("loss", "stderr", "accuracy")
SPECTRUM_FIELDS = ("hessian_min", "hessian_max")


def slope_fields(count: int) -> tuple[str, ...]:
    """Name the fields of one backward pass: ‖∇L‖, and ∇L·d along each of `count` directions."""
    return ("gradient_norm", *(f"slope_{axis}" for axis in AXES[:count]))


def hessian_fields(count: int) -> tuple[str, ...]:
    """Name the fields of the Hessian in the subspace: dᵢᵀHdⱼ row by row, extreme eigenvalues."""
    pairs = [AXES[i] + AXES[j] for i in range(count) for j in range(i, count)]
    return (*(f"curvature_{pair}" for pair in pairs), "curvature_min", "curvature_max")


def all_fields(count: int) -> tuple[str, ...]:
    """List every name that `fields` may hold for a subspace of `count` directions."""
    return (
        *VALUE_FIELDS,
        CLASS_FIELD,
        *slope_fields(count),
        *hessian_fields(count),
        *SPECTRUM_FIELDS,
    )


def positive_field(name: str) -> bool:
    """Tell whether a field is a loss, of which relative errors are meaningful."""
    return "loss" in name


@final
class FieldEvaluator(Evaluator):
    """All wanted fields at a point: values, values on other splits, slopes, curvatures.

    Args:
        choice: Measures the objective and its further splits.
        directions: The subspace.
        settings: Names the fields; the loss comes first if it is not named.

    Attributes:
        smooth: The objective in chunks that are fast to differentiate.

    Raises:
        ValueError: If a field is unknown or has no meaning for the objective or the settings.
        TypeError: If a single string is given.
    """

    def __init__(self, choice: Choice, directions: Directions, settings: Settings) -> None:
        self.choice, self.evaluator, self.directions = choice, choice.evaluator, directions
        self.name = choice.evaluator.name
        count = directions.count
        asked = _asked(settings.fields, choice.evaluator, count)
        # Only what is kept is stored, exchanged between processes and interpolated.
        self.fields = _spelled_out(asked, choice)
        wanted = [
            (names, measure)
            for names, measure in (
                (slope_fields(count), self._slopes),
                (hessian_fields(count), self._hessian),
                (SPECTRUM_FIELDS, self._spectrum),
            )
            if set(names) & set(asked)
        ]
        if wanted:
            _allow_derivatives(settings)
        measured = list(choice.evaluator.fields)
        for split, other in choice.splits.items():
            measured += [f"{split}_{field}" for field in other.fields]
        for names, _ in wanted:
            measured += names
        self._columns = [measured.index(name) for name in self.fields]
        self._derivatives = [measure for _, measure in wanted]
        self._gram = directions.gram()
        self.smooth = choice.evaluator.smooth()

    def measure(self, points: Sequence[Point]) -> Tensor:
        """See `Evaluator.measure`."""
        columns = [self.evaluator.measure(points)]
        columns += [other.measure(points) for other in self.choice.splits.values()]
        for measure in self._derivatives:
            columns.append(torch.stack([measure(self.directions.at(point)) for point in points]))
        return torch.cat(columns, dim=1)[:, self._columns]

    def _slopes(self, theta: Tensor) -> Tensor:
        _, along, norm = slopes(self.smooth, theta, self.directions.vectors)
        return torch.cat((along.new_tensor([norm]), along))

    def _hessian(self, theta: Tensor) -> Tensor:
        matrix = projected_hessian(self.smooth, theta, self.directions.vectors)
        extremes = plane_eigenvalues(matrix, self._gram)
        row, column = torch.triu_indices(len(matrix), len(matrix))
        return torch.cat((matrix[row, column], extremes[[0, -1]]))

    def _spectrum(self, theta: Tensor) -> Tensor:
        found = eigenvalues(
            Hessian(self.smooth, theta),
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


def _asked(
    fields: Sequence[str] | None, evaluator: ObjectiveEvaluator, count: int
) -> tuple[str, ...]:
    """Check the fields asked for, or give the default ones."""
    of_data = isinstance(evaluator, RiskEvaluator)
    if isinstance(fields, str):
        raise TypeError(f"fields must be a sequence of names, such as ({fields!r},)")
    if fields is None:
        return ("loss", "accuracy") if evaluator.has_accuracy() else ("loss",)
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
    if "accuracy" in fields and not evaluator.has_accuracy():
        raise ValueError("this likelihood has no accuracy; leave it out of fields")
    return tuple(fields)


def _spelled_out(asked: Sequence[str], choice: Choice) -> tuple[str, ...]:
    """Spell out the fields of classes and of other splits; the loss comes first."""
    names = ["loss"]
    for name in asked:
        if name == CLASS_FIELD:
            names += [f for f in choice.evaluator.fields if f.startswith(CLASS_FIELD)]
        else:
            names.append(name)
    for split, other in choice.splits.items():
        names += [f"{split}_{f}" for f in names if f in other.fields]
    return tuple(dict.fromkeys(names))


def _allow_derivatives(settings: Settings) -> None:
    """Refuse slopes and curvatures that the settings leave without a meaning."""
    if settings.batchnorm != "frozen":
        raise ValueError(
            "slopes and curvatures are those of the model with frozen statistics; leave them out "
            f"of fields, or take batchnorm='frozen' instead of {settings.batchnorm!r}"
        )
    if settings.precision != "given":
        raise ValueError("bfloat16 is for overviews, not for slopes and curvatures")
