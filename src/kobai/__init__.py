"""kobai: the geometry of training neural networks in PyTorch.

Follow it (natural-gradient and other second-order optimizers), measure it (Hessian, Gauss-Newton,
Fisher), see it (loss landscapes, one self-contained report) and compare.

Names resolve lazily, so that ``kobai.plots`` and ``kobai.report`` can be imported without torch.
"""

import importlib

__version__ = "0.1.0"

__all__ = ["Problem", "__version__"]

_HOMES = {"Problem": "kobai.problem"}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kobai' has no attribute {name!r}; public names: {__all__}")


def __dir__() -> list[str]:
    return __all__
