"""Function space: tangent kernels, what natural gradients do to outputs, kernel regression."""

from kobai.kernels.comparison import kernel_alignment, kernel_distance, kernel_drift
from kobai.kernels.forster import RadialIsotropic, radial_isotropic
from kobai.kernels.linearized import LinearizedModel, linearize
from kobai.kernels.measure import measure_isotropy, measure_kernel
from kobai.kernels.natural.isotropy import isotropy
from kobai.kernels.natural.kernel import natural_kernel
from kobai.kernels.operator import TangentKernel
from kobai.kernels.plan import KernelPlan
from kobai.kernels.regression import KernelRegression
from kobai.kernels.tangent import ntk, ntk_plan

__all__ = [
    "KernelPlan",
    "KernelRegression",
    "LinearizedModel",
    "RadialIsotropic",
    "TangentKernel",
    "isotropy",
    "kernel_alignment",
    "kernel_distance",
    "kernel_drift",
    "linearize",
    "measure_isotropy",
    "measure_kernel",
    "natural_kernel",
    "ntk",
    "ntk_plan",
    "radial_isotropic",
]
