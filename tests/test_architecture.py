"""The architecture is a test: who imports whom, what is public, what stays light."""

import ast
import functools
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

SOURCE = Path(__file__).parents[1] / "src" / "kobai"

_LOWER = {"problem", "linalg", "curvature", "results"}
_COMPUTE = {
    *_LOWER,
    "models",
    "data",
    "theory",
    "kernels",
    "optim",
    "training",
    "diagnostics",
    "landscape",
}

OPEN = {"seeds", "devices", "layers"}

# Package -> the kobai packages it may import besides itself; `OPEN` names those open to everyone.
MAY_IMPORT: dict[str, set[str]] = {
    "results": set(),
    "linalg": set(),
    "problem": set(),
    "models": set(),
    "layers": set(),
    "devices": set(),
    "seeds": set(),
    "data": {"problem"},
    "theory": {"results"},
    "curvature": {"problem", "linalg", "results"},
    "kernels": _LOWER,
    "optim": {"problem", "linalg", "curvature"},
    "training": {"problem", "results"},
    "diagnostics": _LOWER,
    "landscape": _LOWER,
    "studies": _COMPUTE,
    "reproductions": {*_COMPUTE, "studies", "plots"},
    "plots": {"results"},
    "report": {"results", "plots"},
    "cli": {*_COMPUTE, "studies", "reproductions", "plots", "report"},
    "__main__": {"cli"},
}

FILES = sorted(SOURCE.rglob("*.py"))
PACKAGES = sorted(
    path.parent.name if path.name == "__init__.py" else path.stem
    for path in [*SOURCE.glob("*/__init__.py"), *SOURCE.glob("*.py")]
    if path.parent != SOURCE or path.stem not in {"__init__", "__main__"}
)


def _room(path: Path) -> str:
    """The top-level package or module of kobai a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imported_rooms(path: Path) -> set[str]:
    """Names of kobai's rooms that a file imports, also inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the full name"
            names = [node.module or ""]
            if node.module == "kobai":
                names = [f"kobai.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("kobai.")}
    return rooms - {"__version__"}


def test_imports_follow_the_table():
    """`kobai/__init__` resolves names lazily; every other file imports what its room may."""
    wrong = {}
    for path in FILES:
        room = _room(path)
        allowed = set() if room == "__init__" else MAY_IMPORT[room] | {room} | OPEN
        if extra := _imported_rooms(path) - allowed:
            wrong[str(path.relative_to(SOURCE))] = extra
    assert not wrong


def test_no_drawer_without_a_label():
    names = {part.removesuffix(".py") for path in FILES for part in path.relative_to(SOURCE).parts}
    assert not names & {"util", "utils", "helper", "helpers", "common"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring(package):
    module = importlib.import_module(f"kobai.{package}")
    assert module.__doc__
    for name in module.__all__:
        thing = getattr(module, name)
        if not callable(thing):
            continue
        assert inspect.getdoc(thing), f"kobai.{package}.{name} has no docstring"
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                if member.startswith("_") or not (
                    inspect.isfunction(value) or isinstance(value, property | classmethod)
                ):
                    continue
                assert inspect.getdoc(getattr(thing, member)), (
                    f"kobai.{package}.{name}.{member} has no docstring"
                )


def test_pictures_do_not_load_torch():
    code = "import sys, kobai.results, kobai.plots, kobai.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Files outside `kobai.layers` that may name classes of torch's layers in a test, and why; by
# package and file name.
NAMES_LAYERS = {
    "problem/purity.py": "tells whether a module draws random numbers or mixes examples",
    "problem/calling.py": "renews references that torch's recurrent layers keep to their weights",
    "models/init.py": "initialisation",
    "models/biases.py": "initialisation",
    "reproductions/initialisation.py": "initialisation",
    "reproductions/invariance.py": "builds copies of networks from its own parts",
    "studies/stacked.py": "networks of torch's own classes, by exact type, trained together",
}

_LAYER_MODULES = {
    "linear", "conv", "sparse", "batchnorm", "instancenorm", "normalization", "rnn",
}  # fmt: skip


def _is_layer(node: ast.AST) -> bool:
    """Tell whether an expression names a class of torch's layers that have parameters."""
    text = ast.unparse(node).removeprefix("torch.") if isinstance(node, ast.Attribute) else ""
    if not text.startswith("nn."):
        return False
    found = functools.reduce(lambda o, n: getattr(o, n, None), text.split(".")[1:], nn)
    return isinstance(found, type) and (
        found is nn.MultiheadAttention or found.__module__.rpartition(".")[2] in _LAYER_MODULES
    )


def _named_layers(path: Path) -> set[str]:
    """Classes of torch's layers that a file tests modules for, directly or by a tuple of types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("isinstance", "issubclass"):
                parts = [part for place in node.args[1:] for part in ast.walk(place)]
        elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
            parts = list(ast.walk(node))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Tuple):
            parts = list(node.value.elts)
        found |= {ast.unparse(part) for part in parts if _is_layer(part)}
    return found


def test_only_kobai_layers_says_what_a_layer_does():
    named = {path: _named_layers(path) for path in FILES if _room(path) != "layers"}
    wrong = {f"{_room(path)}/{path.name}": sorted(found) for path, found in named.items() if found}
    assert set(wrong) <= set(NAMES_LAYERS), f"ask kobai.layers what a layer is: {wrong}"


_TORCHS_OWN = {"_forward_hooks", "_forward_pre_hooks"}
"""What is asked of torch's modules: whether any hook is left on them."""


def test_tests_of_optimizers_use_public_names():
    """What a test needs to see is public, or belongs to a class that can be tested by itself."""
    found: set[str] = set()
    for path in Path(__file__).with_name("optim").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kobai"):
                names = [alias.name for alias in node.names]
            else:
                continue
            private = {n for n in names if n.startswith("_") and not n.startswith("__")}
            found |= {f"{path.name}:{node.lineno} {name}" for name in private - _TORCHS_OWN}
    assert not found, f"tests reach into private names: {sorted(found)}"


def test_the_objective_keeps_its_member_list():
    """The central abstraction stays small: what every consumer may rely on, and no more."""
    from kobai.problem import Objective

    members = set(Objective.__abstractmethods__)
    assert members == {"value", "value_and_grad", "differentiable", "__call__"}


def test_families_of_likelihoods_are_told_apart_in_problem_only():
    """What belongs to a family stands in its file, so that a user's family works everywhere."""
    families = {"Categorical", "Bernoulli", "Gaussian"}
    for path in FILES:
        text = path.read_text()
        if _room(path) == "problem" or not any(family in text for family in families):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                "isinstance",
                "issubclass",
            }:
                named = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                assert not named & families, f"{path}:{node.lineno} asks for {named & families}"
