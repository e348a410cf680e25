"""Directions in parameter space: an origin, one to three vectors, and the map to and from θ."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Coordinates = Sequence[float] | Float[np.ndarray, " D"] | Float[Tensor, " D"]

INDEPENDENT = 1e-10
"""Smallest eigenvalue that the Gram matrix of unit directions may have (about angle² / 2)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectionsReport:
    """A description of a set of directions in numbers.

    Attributes:
        names: One name per direction.
        norms: Euclidean norms.
        relative_norms: The same over the norm of the origin; infinite at the zero vector.
        cosines: D x D cosines between directions, ones on the diagonal.
        explained: Share of the variance along each direction (PCA only, else empty).
        null: The shares that an isotropic random walk with as many steps would show (PCA only).
    """

    names: tuple[str, ...]
    norms: tuple[float, ...]
    relative_norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    explained: tuple[float, ...] = ()
    null: tuple[float, ...] = ()

    def __str__(self) -> str:
        lines = []
        for i, name in enumerate(self.names):
            line = (
                f"{name}: norm {self.norms[i]:.4g} ({self.relative_norms[i]:.3g} of the origin's)"
            )
            if i:
                cosines = ", ".join(f"{value:.3g}" for value in self.cosines[i][:i])
                line += f", cosine with those before {cosines}"
            if self.explained:
                line += f", explains {100 * self.explained[i]:.1f} % of the variance"
            if self.null:
                line += f" (a random walk: {100 * self.null[i]:.1f} %)"
            lines.append(line)
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """The affine subspace θ(c) = origin + Σ cᵢ dᵢ; nothing is orthogonalised unless asked for.

    Attributes:
        origin: θ at coordinates zero, shape (P,).
        vectors: The directions as columns, shape (P, D) with D = 1, 2 or 3.
        names: One name per direction.
        kind: How they were chosen: "random", "between", "pca", "given".
        origin_label: What lies at the origin, such as the label of a run.
        points: Label to the D coordinates of points worth marking.
        explained: Share of the variance along each direction, for PCA.
        null: The same for an isotropic random walk, for PCA.
        note: How they were made, in a sentence.

    Raises:
        ValueError: If shapes do not fit, a direction is zero or not finite, or they are linearly
            dependent.
    """

    origin: Float[Tensor, " P"]
    vectors: Float[Tensor, "P D"]
    names: tuple[str, ...]
    kind: str = "given"
    origin_label: str = "origin"
    points: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    explained: tuple[float, ...] = ()
    null: tuple[float, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.vectors.shape[0] != self.origin.shape[0]:
            raise ValueError(
                f"directions have {self.vectors.shape[0]} rows but the origin has "
                f"{self.origin.shape[0]} coordinates; both must belong to the same parameters"
            )
        if not 1 <= self.count <= 3:
            raise ValueError(f"one, two or three directions can be drawn, got {self.count}")
        if len(self.names) != self.count:
            raise ValueError(f"{self.count} directions need as many names, got {self.names}")
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "origin", self.origin.detach())
        object.__setattr__(self, "vectors", self.vectors.detach())
        if not bool(torch.isfinite(self.origin).all()):
            raise ValueError("the origin holds NaN or infinite values: did the run diverge?")
        for name, norm in zip(self.names, self.norms, strict=True):
            if not 0.0 < norm < float("inf"):
                raise ValueError(
                    f"direction {name!r} has norm {norm}; it must be finite and not zero"
                )
        if float(torch.linalg.eigvalsh(self.cosine_matrix())[0]) < INDEPENDENT:
            raise ValueError(
                f"the directions {self.names} are linearly dependent; choose others, or draw fewer"
            )
        for label, point in self.points.items():
            if len(point) != self.count:
                raise ValueError(f"point {label!r} needs {self.count} coordinates, got {point}")

    @property
    def count(self) -> int:
        """Number of directions D."""
        return int(self.vectors.shape[1])

    @property
    def norms(self) -> tuple[float, ...]:
        """Euclidean norms of the directions."""
        return tuple(float(column.double().norm()) for column in self.vectors.T)

    def gram(self) -> Float[Tensor, "D D"]:
        """Inner products of the directions, float64."""
        columns = [column.double() for column in self.vectors.T]
        return torch.stack([torch.stack([torch.dot(u, v) for v in columns]) for u in columns])

    def cosine_matrix(self) -> Float[Tensor, "D D"]:
        """Cosines between the directions, float64."""
        gram = self.gram()
        scale = gram.diagonal().sqrt()
        return gram / scale[:, None] / scale[None, :]

    def at(self, coordinates: Coordinates) -> Float[Tensor, " P"]:
        """θ at the given D coordinates, in the dtype and on the device of the origin."""
        if len(coordinates) != self.count:
            raise ValueError(f"expected {self.count} coordinates, got {tuple(coordinates)}")
        theta = self.origin.clone()
        for value, vector in zip(coordinates, self.vectors.T, strict=True):
            theta.add_(vector, alpha=float(value))
        return theta

    def project(
        self, thetas: Iterable[Float[Tensor, " P"]]
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, " T"]]:
        """Least-squares coordinates of points, right for directions of any length and angle.

        Args:
            thetas: Points, one at a time (a list, the rows of a matrix, a generator).

        Returns:
            Coordinates (T, D) and Euclidean distances to the subspace (T,), float64 on the CPU.

        Raises:
            ValueError: If a point has the wrong number of coordinates.
        """
        # Unit columns keep the small system well scaled when the norms differ by orders.
        scale = torch.tensor(self.norms, dtype=torch.float64)
        inverse = torch.linalg.inv(self.cosine_matrix().cpu())
        coordinates, distances = [], []
        for theta in thetas:
            if theta.shape != self.origin.shape:
                raise ValueError(
                    f"a point must have shape {tuple(self.origin.shape)}, got {tuple(theta.shape)}"
                )
            offset = theta.to(self.origin.device).double() - self.origin.double()
            along = torch.stack([torch.dot(v.double(), offset) for v in self.vectors.T]).cpu()
            c = inverse @ (along / scale) / scale
            for value, vector in zip(c.tolist(), self.vectors.T, strict=True):
                offset.sub_(vector.double(), alpha=value)
            coordinates.append(c)
            distances.append(offset.norm().cpu())
        if not coordinates:
            return scale.new_zeros(0, self.count), scale.new_zeros(0)
        return torch.stack(coordinates), torch.stack(distances)

    def orthogonal(self) -> "Directions":
        """Span the same subspace by directions made orthogonal one after the other, norms kept.

        The first direction stays; marked points keep their places in space. Filter-wise norms do
        not survive this, which is why it is never done unasked.
        """
        vectors = self.vectors.double()
        columns: list[Tensor] = []
        for vector in vectors.T:
            rest = vector.clone()
            for _ in range(2):  # twice is enough for orthogonality to rounding
                for column in columns:
                    rest -= torch.dot(column, rest) / torch.dot(column, column) * column
            columns.append(rest * (vector.norm() / rest.norm()) if columns else vector)
        made = torch.stack(columns, dim=1).to(self.vectors.dtype)
        return self._respanned(made, "made orthogonal")

    def orthonormal(self) -> "Directions":
        """Like `orthogonal`, with unit directions: coordinates become distances."""
        made = self.orthogonal().vectors.double()
        return self._respanned((made / made.norm(dim=0)).to(self.vectors.dtype), "orthonormal")

    def _respanned(self, vectors: Tensor, how: str) -> "Directions":
        moved = dataclasses.replace(self, vectors=vectors, points={})
        change = torch.linalg.solve(
            moved.gram().cpu(), vectors.double().T.cpu() @ self.vectors.double().cpu()
        )
        points = {
            label: tuple((change @ torch.tensor(point, dtype=torch.float64)).tolist())
            for label, point in self.points.items()
        }
        note = f"{self.note}; {how}" if self.note else how
        return dataclasses.replace(moved, points=points, note=note)

    def take(self, *indices: int) -> "Directions":
        """Take some of the directions, such as one for a line; marked points are left out."""
        keep = list(indices)
        return dataclasses.replace(
            self,
            vectors=self.vectors[:, keep],
            names=tuple(self.names[i] for i in keep),
            points={},
            explained=tuple(self.explained[i] for i in keep) if self.explained else (),
            null=tuple(self.null[i] for i in keep) if self.null else (),
        )

    def report(self) -> DirectionsReport:
        """Norms, cosines and explained variance; `print` shows them as sentences."""
        origin = float(self.origin.double().norm())
        norms = self.norms
        return DirectionsReport(
            names=self.names,
            norms=norms,
            relative_norms=tuple(n / origin if origin else float("inf") for n in norms),
            cosines=tuple(tuple(row) for row in self.cosine_matrix().tolist()),
            explained=self.explained,
            null=self.null,
        )


def vector_directions(
    origin: Float[Tensor, " P"], vectors: Mapping[str, Tensor], *, origin_label: str = "origin"
) -> Directions:
    """Directions given by the user: a gradient, an update, an eigenvector, a difference.

    Args:
        origin: θ at coordinates zero.
        vectors: Name to vector (P,); used as they are, neither scaled nor orthogonalised.
        origin_label: What lies at the origin.

    Raises:
        ValueError: If a vector has another length than the origin, is zero, not finite or
            dependent on the others.
    """
    for name, vector in vectors.items():
        if vector.shape != origin.shape:
            raise ValueError(
                f"direction {name!r} must have shape {tuple(origin.shape)}, "
                f"got {tuple(vector.shape)}"
            )
    if not vectors:
        raise ValueError("at least one direction is needed, got none")
    columns = [vector.to(origin.device, origin.dtype) for vector in vectors.values()]
    return Directions(
        origin=origin,
        vectors=torch.stack(columns, dim=1),
        names=tuple(vectors),
        kind="given",
        origin_label=origin_label,
    )
