"""Function space: tangent kernels, what natural gradients do to outputs, kernel regression."""

from kobai.kernels.operator import TangentKernel
from kobai.kernels.plan import KernelPlan
from kobai.kernels.tangent import ntk, ntk_plan

__all__ = ["KernelPlan", "TangentKernel", "ntk", "ntk_plan"]
