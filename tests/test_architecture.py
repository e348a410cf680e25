"""The architecture is a test: who imports whom, what is public, what stays light."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

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

# Package -> the kobai packages it may import besides itself; `seeds` is open to everyone.
MAY_IMPORT: dict[str, set[str]] = {
    "results": set(),
    "linalg": set(),
    "problem": set(),
    "models": set(),
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
        allowed = set() if room == "__init__" else MAY_IMPORT[room] | {room, "seeds"}
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


def test_the_objective_keeps_its_member_list():
    """The central abstraction stays small: what every consumer may rely on, and no more."""
    from kobai.problem import Objective

    members = set(Objective.__abstractmethods__)
    assert members == {"value", "value_and_grad", "differentiable", "__call__"}
