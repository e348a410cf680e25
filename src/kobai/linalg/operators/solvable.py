"""Operators whose structure lets them be inverted: the interface, and the result of inverting."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.factor import JITTERS
from kobai.linalg.operators.operator import LinearOperator

DampingForm = Literal["exact", "pi", "each"]


@final
class MatrixFunction(LinearOperator):
    """A power of a damped symmetric matrix, as an operator, with how its factorisation went.

    Multiplying with the inverse solves. Where the factorisation failed, products are NaN and the
    status says why.

    Attributes:
        operator: the operator that makes the products, for example a `Kronecker` of inverse
            factors.
        status: "ok"; "jittered" (a multiple of the identity had to be added); "indefinite",
            "not-converged" or "non-finite" (no result). Of an inverse by conjugate gradients
            (`kobai.linalg.IterativeInverse`, found in ``operator``): that of the latest solve.
        jitter: the largest amount added to any diagonal beyond the damping asked for.
        log_determinant: of the damped matrix itself, before the power was taken; where it costs
            more than the factorisation it is computed when it is first asked for.
    """

    def __init__(
        self,
        operator: LinearOperator,
        *,
        status: str,
        jitter: float,
        log_determinant: float | Callable[[], float],
    ) -> None:
        self.operator = operator
        self.status = status
        self.jitter = jitter
        self._log_determinant = log_determinant
        super().__init__(
            operator.shape,
            dtype=operator.dtype,
            device=operator.device,
            symmetric=operator.symmetric,
            positive_semidefinite=operator.positive_semidefinite,
        )

    @property
    def log_determinant(self) -> float:
        """Of the damped matrix itself."""
        if callable(self._log_determinant):
            self._log_determinant = self._log_determinant()
        return self._log_determinant

    def _matmat(self, columns: Tensor) -> Tensor:
        product = self.operator @ columns
        # What iterates knows its status after the product only.
        self.status = getattr(self.operator, "solve_status", self.status)
        return product

    def _adjoint(self) -> LinearOperator:
        return self.operator.T


class SolvableOperator(LinearOperator):
    """A symmetric positive semidefinite operator that can be damped and inverted (interface).

    Derived classes implement ``_inverse``, ``_power``, ``trace`` and ``diagonal``. The latest
    inverse is kept, so that repeated solves with one damping factorise once.

    Damping forms, for damping λ:

    - ``"exact"``: (M + λ I)⁻¹.
    - ``"pi"``: for M = A ⊗ B, ((A + π √λ I) ⊗ (B + √λ / π I))⁻¹ with π² = (tr A / m) / (tr B / n)
      [Martens & Grosse 2015, §6.3]; every other operator: as "exact".
    - ``"each"``: for M = A ⊗ B, ((A + λ I) ⊗ (B + λ I))⁻¹; every other operator: as "exact".
    """

    _kept_inverse: tuple[tuple[float, DampingForm], MatrixFunction] | None = None

    @abstractmethod
    def trace(self) -> float:
        """Sum of the diagonal; no products."""

    @abstractmethod
    def diagonal(self) -> Float[Tensor, "n"]:
        """The diagonal; no products."""

    @abstractmethod
    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        """Inverse of the damped matrix."""

    @abstractmethod
    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        """Power of the damped matrix."""

    def inverse(
        self, damping: float | int = 0.0, damping_form: DampingForm = "exact"
    ) -> MatrixFunction:
        """The inverse of the damped matrix as an operator, with its status.

        Args:
            damping: λ >= 0.
            damping_form: see the class.

        Raises:
            ValueError: negative damping, an unknown form, an operator that is not symmetric.
        """
        self.check_damping(damping, damping_form)
        key = (float(damping), damping_form)
        if self._kept_inverse is None or self._kept_inverse[0] != key:
            self._kept_inverse = (key, self._inverse(*key))
        return self._kept_inverse[1]

    def power(
        self, exponent: float | int, damping: float | int = 0.0, damping_form: DampingForm = "exact"
    ) -> MatrixFunction:
        """A power of the damped matrix, such as -1/2, by eigendecomposition.

        Args:
            exponent: any real number.
            damping: λ >= 0.
            damping_form: see the class.

        Raises:
            ValueError: negative damping, an unknown form, an operator that is not symmetric.
        """
        self.check_damping(damping, damping_form)
        return self._power(float(exponent), float(damping), damping_form)

    def solve(
        self,
        b: Float[Tensor, "n *k"],
        damping: float | int = 0.0,
        damping_form: DampingForm = "exact",
    ) -> Float[Tensor, "n *k"]:
        """The damped matrix's inverse times a vector or a block: ``inverse(...) @ b``.

        NaN where the factorisation failed; `inverse` tells why.
        """
        return self.inverse(damping, damping_form) @ b

    def logdet(self, damping: float | int = 0.0, damping_form: DampingForm = "exact") -> float:
        """Logarithm of the determinant of the damped matrix; NaN where it is not definite."""
        return self.inverse(damping, damping_form).log_determinant

    def check_damping(self, damping: float | int, damping_form: str) -> None:
        """Raise ValueError for a damping that cannot be asked for."""
        if not self.symmetric:
            raise ValueError(f"only a symmetric operator can be inverted here; got {self!r}")
        if not (math.isfinite(damping) and damping >= 0):
            raise ValueError(f"damping is a finite number, at least 0; got {damping}")
        if damping_form not in ("exact", "pi", "each"):
            raise ValueError(f"damping_form is exact, pi or each; got {damping_form!r}")


def shifted_power(
    values: Float[Tensor, "*shape"], exponent: float, damping: float, resolution: float
) -> tuple[Float[Tensor, "*shape"], str, float, float]:
    """(values + damping) ** exponent for the eigenvalues of a matrix that should be definite.

    Eigenvalues within ``resolution`` times the largest of zero are rounding. A positive power takes
    them as zero; a negative one climbs the same jitter ladder as `cholesky`.

    Args:
        values: eigenvalues.
        exponent: the power.
        damping: added first.
        resolution: relative size of the rounding in the values; 0 where each is exact by itself.

    Returns:
        The powers (float64), status, jitter and log determinant of the damped matrix.
    """
    shifted = values.to(torch.float64) + damping
    if not bool(torch.isfinite(shifted).all()):
        return torch.full_like(shifted, torch.nan), "non-finite", 0.0, math.nan
    if shifted.numel() == 0:
        return shifted, "ok", 0.0, 0.0
    limit = resolution * float(shifted.abs().max())
    low = float(shifted.min())
    if exponent >= 0:
        if low < -limit:
            return torch.full_like(shifted, torch.nan), "indefinite", 0.0, math.nan
        shifted = shifted.clamp(min=0.0)
        return shifted**exponent, "ok", 0.0, float(shifted.log().sum())
    mean = float(shifted.mean())
    for rung in (0.0, *JITTERS):
        jitter = rung * mean
        if low + jitter > limit:
            shifted = shifted + jitter
            status = "jittered" if rung else "ok"
            return shifted**exponent, status, jitter, float(shifted.log().sum())
    return torch.full_like(shifted, torch.nan), "indefinite", 0.0, math.nan
