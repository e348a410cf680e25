"""Regression with a fixed kernel: predictions, their variance, and the way training gets there.

In the linearised network f(x') moves by −η K(x', X) (f(X) − y)/W a step. With any kernel that is
symmetric on the training points (tangent, NNGP, natural) everything below is a function of its
eigendecomposition: f_t(X) = y + (1 − η K/W)ᵗ (f_0 − y). Sources: Jacot, Gabriel and Hongler 2018
(1806.07572); Lee et al. 2019 (1902.06720); Rasmussen and Williams 2006, §2.2.
"""

from typing import Literal, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.factor import eigh

Array: TypeAlias = Tensor | np.ndarray
Descent = Literal["descent", "flow"]

_SYMMETRIC = 1e-6


@final
class KernelRegression:
    """The predictor f(x') = f_0(x') + K(x', X) (K(X, X) + ridge)⁻¹ (y − f_0(X)).

    Kernels are (N, N), shared by all outputs, or (N, C, N, C). Arrays may be tensors or NumPy
    (`kobai.theory.infinite_width_kernels`); computed in float64 and returned in the targets' dtype.

    Args:
        kernel: K(X, X): `kobai.kernels.ntk`, `natural_kernel`, an NNGP kernel.
        targets: y, (N,) or (N, C).
        initial: f_0(X), shaped like the targets; default zeros.
        ridge: Added to the diagonal; 0 is ridge-less regression, by the pseudo-inverse where the
            kernel is singular.

    Attributes:
        rank: Number of eigenvalues that count.
        status: "ok", "pseudo-inverse" (singular without ridge), "indefinite" (eigenvalues below
            zero beyond rounding: no Gaussian process has this kernel), or "not-converged" and
            "non-finite" (predictions are NaN).

    Raises:
        ValueError: If shapes do not fit, the kernel is not symmetric, or the ridge is negative.

    Example:
        >>> import torch
        >>> from kobai.kernels import KernelRegression
        >>> fit = KernelRegression(torch.eye(2), torch.tensor([1.0, 2.0]), ridge=1.0)
        >>> fit.mean(torch.tensor([[1.0, 0.0]]))
        tensor([0.5000])
    """

    def __init__(
        self,
        kernel: Array,
        targets: Array,
        *,
        initial: Array | None = None,
        ridge: float | int = 0.0,
    ) -> None:
        self.targets = _tensor(targets)
        self._shape = self.targets.shape
        if self.targets.ndim not in (1, 2):
            raise ValueError(f"targets are (N,) or (N, C), got shape {tuple(self._shape)}")
        if not ridge >= 0:
            raise ValueError(f"ridge is a number of at least 0, got {ridge}")
        self.ridge = float(ridge)
        self._shared = _tensor(kernel).ndim == 2
        matrix = self._matrix(kernel, "kernel")
        if len(matrix) != matrix.shape[1] or len(matrix) * self._width() != self.targets.numel():
            raise ValueError(
                f"a kernel of shape {tuple(_tensor(kernel).shape)} does not fit targets "
                f"of shape {tuple(self._shape)}"
            )
        scale = float(matrix.abs().max())
        if float((matrix - matrix.T).abs().max()) > _SYMMETRIC * scale:
            raise ValueError("the kernel on the training points is not symmetric")
        self._y = self._columns(self.targets)
        self._start = torch.zeros_like(self._y)
        if initial is not None:
            if _tensor(initial).shape != self._shape:
                raise ValueError(
                    f"initial outputs must have the targets' shape {tuple(self._shape)}, got "
                    f"{tuple(_tensor(initial).shape)}"
                )
            self._start = self._columns(_tensor(initial))
        spectral = eigh(matrix)
        self._values, self._vectors = spectral.values, spectral.vectors
        # Rounding of the kernel's own precision decides what is zero.
        dtype = _tensor(kernel).dtype
        eps = torch.finfo(dtype if dtype.is_floating_point else torch.float64).eps
        limit = len(matrix) * eps * float(self._values.abs().max())
        self._kept = (self._values + self.ridge).abs() > (limit if self.ridge == 0 else 0.0)
        self.rank = int((self._values.abs() > limit).sum())
        self.status = spectral.status
        if self.status == "ok" and bool((self._values < -limit).any()):
            self.status = "indefinite"
        elif self.status == "ok" and not bool(self._kept.all()):
            self.status = "pseudo-inverse"

    def mean(self, cross: Array | None = None, *, initial: Array | None = None) -> Tensor:
        """The prediction.

        Args:
            cross: K(x', X), (N', N) or (N', C, N, C); default: at the training points.
            initial: f_0(x'), shaped like the result; default zeros.

        Returns:
            (N',) or (N', C).
        """
        return self._predict(cross, initial, self._inverted())

    def variance(
        self,
        cross: Array,
        prior: Array,
        *,
        nngp: Array | None = None,
        nngp_cross: Array | None = None,
    ) -> Tensor:
        """Variance of the prediction at each point.

        Alone, of the Gaussian process with this kernel and noise of variance `ridge`:
        K(x', x') − K(x', X) (K + ridge)⁻¹ K(X, x'). With `nngp`, of an ensemble of wide networks
        trained to the end under this tangent kernel, which is no posterior of any prior:
        𝒦'' − 2 A 𝒦(X, x') + A 𝒦 Aᵀ with A = Θ(x', X) (Θ + ridge)⁻¹ (Lee et al. 2019, eq. 16).

        Args:
            cross: K(x', X).
            prior: The diagonal of K(x', x') (of the NNGP kernel with `nngp`): (N',) or (N', C).
            nngp: 𝒦(X, X), shaped like the kernel.
            nngp_cross: 𝒦(x', X), shaped like `cross`.

        Returns:
            Shaped like the prior.
        """
        matrix = self._matrix(cross, "cross")
        given = _tensor(prior).double()
        if given.numel() != len(matrix):
            raise ValueError(f"prior must hold {len(matrix)} variances, got {given.numel()}")
        turned = matrix @ self._vectors
        weights = (turned * self._inverted()) @ self._vectors.T
        if nngp is None:
            taken = (weights * matrix).sum(1)
        else:
            if nngp_cross is None:
                raise ValueError("nngp needs nngp_cross, the same kernel between x' and X")
            inner, between = self._matrix(nngp, "nngp"), self._matrix(nngp_cross, "nngp_cross")
            taken = 2 * (weights * between).sum(1) - ((weights @ inner) * weights).sum(1)
        return (given.reshape(-1) - taken).view(given.shape).to(self._out())

    def training(
        self,
        learning_rate: float,
        steps: Float[Array, " T"] | float | int,
        cross: Array | None = None,
        *,
        initial: Array | None = None,
        normaliser: float | int = 1.0,
        method: Descent = "descent",
    ) -> Tensor:
        """Outputs after t steps in the linearised network, in closed form (without the ridge).

        Args:
            learning_rate: η.
            steps: One t or several; whole numbers for "descent".
            cross: K(x', X); default: at the training points.
            initial: f_0(x'); default zeros (at the training points: those given).
            normaliser: W: N for a tangent kernel and a mean over N examples, 1 for a natural
                kernel, which is divided already.
            method: "descent": full-batch steps of size η, plain or natural by the kernel;
                "flow": gradient flow for a time η t.

        Returns:
            (T, N') or (T, N', C), without the first axis for one t.

        Raises:
            ValueError: If a step count is negative or not whole, or shapes do not fit.
        """
        if method not in ("descent", "flow"):
            raise ValueError(f"method must be 'descent' or 'flow', got {method!r}")
        times = _tensor(steps).double().reshape(-1)
        if bool((times < 0).any()) or (method == "descent" and bool((times % 1 != 0).any())):
            raise ValueError(f"steps are whole numbers of at least 0, got {steps!r}")
        rates = float(learning_rate) * self._values / float(normaliser)
        found = []
        for t in times.tolist():
            done = -torch.expm1(-rates * t) if method == "flow" else 1 - (1 - rates) ** t
            # (1 − (1 − η κ)ᵗ) / κ, whose limit at κ = 0 is η t.
            limit = learning_rate * t / float(normaliser)
            small = rates.abs() * max(t, 1.0) < 1e-12
            safe = torch.where(self._values == 0, 1.0, self._values)
            share = torch.where(small, torch.full_like(rates, limit), done / safe)
            found.append(self._predict(cross, initial, share))
        return found[0] if _tensor(steps).ndim == 0 else torch.stack(found)

    def _inverted(self) -> Tensor:
        shifted = torch.where(self._kept, self._values + self.ridge, 1.0)
        return torch.where(self._kept, 1 / shifted, 0.0)

    def _predict(self, cross: Array | None, initial: Array | None, share: Tensor) -> Tensor:
        residual = self._vectors.T @ (self._y - self._start)
        if cross is None:
            moved = self._vectors @ ((self._values * share).unsqueeze(1) * residual)
            result = self._start + moved
        else:
            matrix = self._matrix(cross, "cross")
            if matrix.shape[1] != len(self._values):
                raise ValueError(
                    f"cross must end in the {len(self._values)} rows of the kernel, got shape "
                    f"{tuple(_tensor(cross).shape)}"
                )
            result = matrix @ (self._vectors @ (share.unsqueeze(1) * residual))
        width = self._shape[1:]
        result = result.reshape(-1, *width)
        if initial is not None:
            start = _tensor(initial).to(result)
            if cross is None:
                raise ValueError("initial outputs at the training points belong to the constructor")
            if start.shape != result.shape:
                raise ValueError(
                    f"initial outputs must have shape {tuple(result.shape)}, got "
                    f"{tuple(start.shape)}"
                )
            result = result + start
        return result.to(self._out())

    def _width(self) -> int:
        return self._shape[1] if self._shared and len(self._shape) == 2 else 1

    def _columns(self, values: Tensor) -> Tensor:
        """Outputs as columns that share the kernel, or all in one column."""
        values = values.double()
        return values.reshape(len(values), -1) if self._shared else values.reshape(-1, 1)

    def _matrix(self, kernel: Array, name: str) -> Tensor:
        given = _tensor(kernel).double().to(self.targets.device)
        if given.ndim == 2 and self._shared:
            return given
        if given.ndim == 4 and not self._shared:
            return given.flatten(2).flatten(0, 1)
        form = "(N, N)" if self._shared else "(N, C, N, C)"
        raise ValueError(f"{name} must have the form {form}, got shape {tuple(given.shape)}")

    def _out(self) -> torch.dtype:
        dtype = self.targets.dtype
        return dtype if dtype.is_floating_point else torch.float64


def _tensor(values: Array | float | int) -> Tensor:
    """A tensor on the same memory where torch allows it: arrays of results are read-only."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        return torch.from_numpy(values.copy())
    return torch.as_tensor(values)
