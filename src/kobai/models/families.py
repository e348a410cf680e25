"""Every model family by name, and models that users bring along."""

import importlib
import inspect
from collections.abc import Callable, Sequence

import torch
from torch import nn

from kobai.models.cnn import CNN, CNNConfig
from kobai.models.linear import LinearConfig, LinearNet
from kobai.models.lstm import LSTM, LSTMConfig
from kobai.models.mlp import MLP, MLPConfig
from kobai.models.resnet import ResNet, ResNet50Config, ResNet56Config, ResNetConfig
from kobai.models.transformer import Transformer, TransformerConfig
from kobai.models.validation import require_choice, require_outputs

__all__ = ["FAMILIES", "ModelConfig", "build", "from_factory"]

ModelConfig = (
    LinearConfig
    | MLPConfig
    | CNNConfig
    | ResNetConfig
    | ResNet50Config
    | LSTMConfig
    | TransformerConfig
)

#: Family name → class of its configuration; ``FAMILIES[name]()`` is the default one.
FAMILIES: dict[str, type[ModelConfig]] = {
    "linear": LinearConfig,
    "mlp": MLPConfig,
    "cnn": CNNConfig,
    "resnet20": ResNetConfig,
    "resnet56": ResNet56Config,
    "resnet50": ResNet50Config,
    "lstm": LSTMConfig,
    "transformer": TransformerConfig,
}

_MODELS: dict[type, Callable[..., nn.Module]] = {
    LinearConfig: LinearNet,
    MLPConfig: MLP,
    CNNConfig: CNN,
    ResNetConfig: ResNet,
    ResNet56Config: ResNet,
    ResNet50Config: ResNet,
    LSTMConfig: LSTM,
    TransformerConfig: Transformer,
}


def build(
    name_or_config: str | ModelConfig,
    *,
    input_shape: Sequence[int],
    num_outputs: int,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Build an initialised model.

    Args:
        name_or_config: A family's name, for its default configuration; a configuration; or
            "package.module:factory", see `from_factory`.
        input_shape: Shape of one input, without the batch axis.
        num_outputs: C; outputs have the shape (N, C).
        generator: Source of the parameters; the global random state is left alone.
        dtype: Type of the parameters; None is PyTorch's default.
        device: Device of the parameters; None is PyTorch's default.

    Returns:
        The module, in training mode.

    Raises:
        ValueError: If the name is unknown or the model cannot read such inputs.
    """
    if isinstance(name_or_config, str) and ":" in name_or_config:
        module = from_factory(
            name_or_config,
            input_shape=input_shape,
            num_outputs=num_outputs,
            generator=generator,
        )
        return module.to(device=device, dtype=dtype)
    if isinstance(name_or_config, str):
        require_choice("model", name_or_config, [*FAMILIES, "package.module:factory"])
        config = FAMILIES[name_or_config]()
    else:
        config = name_or_config
    return _MODELS[type(config)](
        config,
        input_shape=input_shape,
        num_outputs=num_outputs,
        generator=generator,
        dtype=dtype,
        device=device,
    )


def from_factory(
    spec: str, *, input_shape: Sequence[int], num_outputs: int, generator: torch.Generator
) -> nn.Module:
    """Import a user's factory and call it with those of our arguments that it accepts.

    A factory that builds stock PyTorch layers draws from the global random state; it is called with
    that state seeded from `generator`, and the state is put back afterwards.

    Args:
        spec: "package.module:factory"; the factory may be a function or a class, also a nested name
            such as "package.module:Zoo.small".
        input_shape: Offered to the factory as `input_shape`, a tuple without the batch axis.
        num_outputs: Offered as `num_outputs`.
        generator: Offered as `generator`.

    Returns:
        What the factory made.

    Raises:
        ValueError: If the spec is malformed, the module or name is not found, or the factory wants
            arguments that are not on offer.
        TypeError: If it cannot be called, or what it makes is not an `nn.Module`.
    """
    require_outputs(input_shape, num_outputs)
    factory = _import(spec)
    offered = {
        "input_shape": tuple(input_shape),
        "num_outputs": num_outputs,
        "generator": generator,
    }
    parameters = inspect.signature(factory).parameters.values()
    wanting = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
        and (p.kind is p.POSITIONAL_ONLY or p.name not in offered)
    ]
    if wanting:
        raise ValueError(
            f"{spec} wants the arguments {', '.join(wanting)}, but only {', '.join(offered)} are "
            "offered, by keyword; give the others defaults"
        )
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}
    arguments = {key: value for key, value in offered.items() if takes_all or key in named}
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        torch.manual_seed(seed)
        module = factory(**arguments)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{spec} must return an nn.Module, got {type(module).__name__}")
    return module


def _import(spec: str) -> Callable[..., object]:
    """The callable that "package.module:name" names."""
    path, colon, name = spec.partition(":")
    if not (path and colon and name):
        raise ValueError(f"a model of your own is named package.module:factory, got {spec!r}")
    try:
        found: object = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise ValueError(f"importing {path!r} for {spec!r} failed: {error}") from error
        raise ValueError(
            f"no module {path!r} to import for {spec!r}; install it or put its folder on PYTHONPATH"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{path!r} has no {name!r}; check the name in {spec!r}")
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{spec} must be callable, got {type(found).__name__}")
    return found
