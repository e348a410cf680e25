"""Flags as typed, nested dataclasses, whose shape depends on the names chosen.

``--model mlp`` decides which ``--model.*`` flags there are, ``--optimizers sgd,kfac`` brings
``--sgd.*`` and ``--kfac.*``, ``--schedule cosine`` brings ``--schedule.*``. So the names are read
first, the class of options is made for them, and tyro does the rest. Values come from the class's
defaults, then from a ``run.toml`` given by ``--config``, then from the flags.
"""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from kobai import models, optim, training
from kobai.curvature.spectrum import MatrixName
from kobai.data import DATA_SETS, FORMS
from kobai.optim import Domain
from kobai.reproductions import FORMER_NAMES
from kobai.studies import CurvatureOptions, LandscapeOptions, StudyOptions, StudyTraining


class UsageError(ValueError):
    """Wrong use of the command line: one line, exit code 2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemOptions:
    """Model and data; the part that every verb shares."""

    data: Annotated[str, tyro.conf.arg(help=f"Data set: {', '.join([*DATA_SETS, *FORMS])}.")] = (
        "digits"
    )
    limit: int | None = None
    """Use at most so many training examples, evenly from the classes (count)."""
    test_limit: int | None = None
    """Use at most so many test examples, evenly from the classes (count)."""
    standardize: bool = False
    """Shift and scale the inputs to mean 0 and variance 1."""
    validation: float = 0.0
    """Share of the training data held out for validation (fraction)."""
    model: str = "mlp"
    """Model: linear, mlp, cnn, resnet20, resnet56, resnet50, lstm, transformer or
    package.module:factory."""
    seed: int = 0
    """Seed everything random is drawn from (an integer, 0 or more)."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating-point type of inputs and parameters."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, …"""
    threads: int | None = None
    """Threads for computing (count); default: as many as there are cores."""
    json: bool = False
    """Print the result as JSON on standard output instead of a table."""


OF_A_RUN = (
    "data", "limit", "test_limit", "standardize", "validation", "model", "model_options", "dtype",
)  # fmt: skip
"""Flags of the problem, which a run folder brings itself."""


def refuse_problem_flags(options: ProblemOptions, folder: Path, *more: str) -> None:
    """Refuse flags that would be passed over because a run folder was named.

    Args:
        options: What was given.
        folder: The run folder.
        more: Further flags that have no meaning then.

    Raises:
        UsageError: If one of them differs from its default.
    """
    plain = type(options)()
    given = [
        f"--{name.replace('_', '-').replace('model-options', 'model.*')}"
        for name in (*OF_A_RUN, *more)
        if getattr(options, name, None) != getattr(plain, name, None)
    ]
    if given:
        raise UsageError(
            f"{folder} brings its own problem: leave {', '.join(given)} out, or name no run folder"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """The run folder and what to do when there is one already."""

    out: Path
    """Run folder to write."""
    resume: bool = False
    """Go on with the run in the folder; finished pieces are kept."""
    fresh: bool = False
    """Delete the run in the folder and start again."""
    config: Path | None = None
    """A run.toml to take settings from; flags override it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(ProblemOptions, FolderOptions):
    """Train one model with several optimizers, measure where each ends, draw the landscape.

    With --suite deep-learning-book: the algorithms of that book's chapter 8 on several problems
    within equal budgets, which has flags of its own (kobai compare --suite deep-learning-book
    --help).
    """

    out: Path = Path("runs/compare")
    """Run folder to write."""
    optimizers: str = "sgd,adam,kfac"
    """Optimizers, separated by commas; each brings its own flags, such as --kfac.lr."""
    seeds: int = 3
    """Seeds for each optimizer, counted from --seed (count)."""
    schedule: str = "constant"
    """Learning-rate schedule: constant, linear or cosine; brings --schedule.* flags."""
    batch_schedule: str = "constant"
    """Batch size over epochs: constant, geometric, linear or steps; brings --batch-schedule.*
    flags."""
    training: Annotated[StudyTraining, tyro.conf.arg(name="")] = StudyTraining()
    curvature: CurvatureOptions = CurvatureOptions()
    landscape: LandscapeOptions = LandscapeOptions()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(ProblemOptions, FolderOptions):
    """Train one model with one optimizer, with checkpoints that a later run goes on from."""

    out: Path = Path("runs/train")
    """Run folder to write."""
    optimizer: str = "kfac"
    """Optimizer; brings its own flags, such as --kfac.lr."""
    schedule: str = "constant"
    """Learning-rate schedule: constant, linear or cosine; brings --schedule.* flags."""
    batch_schedule: str = "constant"
    """Batch size over epochs: constant, geometric, linear or steps; brings --batch-schedule.*
    flags."""
    training: Annotated[StudyTraining, tyro.conf.arg(name="")] = StudyTraining()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureOptions(ProblemOptions):
    """Measure eigenvalues, trace and critical learning rate of a run or of a fresh model."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Run folder of kobai train or compare; without one a fresh model is measured."""
    checkpoint: Path | None = None
    """A model file to load into --model: .safetensors, or .pt, .pth, .bin of torch.save with the
    tensors by name."""
    out: Path | None = None
    """Folder for the result; default: the run folder, or none for a fresh model or a file."""
    label: str | None = None
    """Which runs of a comparison, such as kfac-s0 or kfac-s0,sgd-s0; default: all of them."""
    matrix: MatrixName = "hessian"
    """Which curvature matrix; fisher-observed is the empirical Fisher matrix."""
    which: Literal["largest", "smallest", "both", "magnitude"] = "largest"
    """Which eigenvalues; both: half of them at each end."""
    density: bool = False
    """Also the spectral density, with outliers counted and the share of negative eigenvalues."""
    per_layer: bool = False
    """Also the spectral density of every layer's diagonal block."""
    probes: int = 10
    """Random vectors of each density (count)."""
    steps: int = 50
    """Lanczos steps of each probe (count); the product of both bounds the cost."""
    density_tolerance: float = 0.0
    """Stop a density at this L1 error (0 to 2); 0: run all probes and steps."""
    momentum: float = 0.9
    """Momentum of the critical learning rates of heavy ball and Nesterov (0: leave them out)."""
    preconditioner: str = ""
    """Fisher structures, separated by commas, to precondition gradient descent with for its
    critical learning rate, such as kronecker,diagonal; adam: Adam's own rule (what an Adam run or
    checkpoint remembers is used unasked, otherwise single-example gradients)."""
    damping: float = 1e-3
    """Added to preconditioners and in the ladder (multiple of the identity)."""
    kernel: bool = False
    """Also the tangent kernel of the first --kernel-examples examples: spectrum, shares of layers,
    alignment with the labels."""
    isotropy: bool = False
    """Also the isotropy table: which Fisher structure moves the outputs like the exact one, and
    which is the cheapest of them."""
    kernel_examples: int = 100
    """Examples of the tangent kernel and of the isotropy table (count)."""
    exactness: bool = False
    """Also the ladder: every Fisher structure against the exact matrix (up to 5,000 parameters), on
    the first examples, 2,000 outputs together."""
    curvature: CurvatureOptions = CurvatureOptions(
        examples=10_000, eigenvalues=10, trace_tolerance=0.02, max_products=500
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneOptions(ProblemOptions, FolderOptions):
    """Search an optimizer's settings: a study that resumes by itself and that workers can join.

    Every setting of the optimizer has a --space.SETTING flag with what may be tried, such as
    "log(1e-4, 1)", "linear(0, 0.99)", "integer(1, 100)" or "choice(0.9, 0.99)"; an empty text
    leaves the setting at its --OPTIMIZER.SETTING value. Start the same command again, also on
    another machine, to add a worker.
    """

    out: Path = Path("studies/tune")
    """Folder of the study."""
    resume: bool = True
    """Go on with the study in the folder; the default."""
    optimizer: str = "kfac"
    """Optimizer; brings its own flags, such as --kfac.lr and --space.lr."""
    schedule: str = "constant"
    """Learning-rate schedule: constant, linear or cosine; brings --schedule.* and
    --space.schedule.* flags."""
    validation: float = 0.1
    """Share of the training data held out for validation (fraction)."""
    study: StudyOptions = StudyOptions()
    training: Annotated[StudyTraining, tyro.conf.arg(name="")] = StudyTraining(epochs=5.0)
    workers: int = 1
    """Processes to run trials in (count)."""
    top: int = 100
    """How many of the best trials count (count)."""
    rerun: int = 5
    """How many of the best settings to train again on new seeds; 0: none (count)."""
    rerun_seeds: int = 3
    """New seeds for each of them (count)."""


def _space_group(name: str, kind: type, defaults: Mapping[str, Domain]) -> type:
    """A class of texts, one a setting: what may be tried, empty for not searched."""
    fields = [
        (f.name, str, dataclasses.field(default=str(defaults.get(f.name, ""))))
        for f in dataclasses.fields(kind)
    ]
    group = dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True)
    group.__doc__ = "What may be tried for each setting; empty: not searched."
    return group


def scan(arguments: Sequence[str], name: str) -> str | None:
    """The last value given for a flag, in either spelling, before anything is parsed."""
    found = None
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag.replace("_", "-") != f"--{name.replace('_', '-')}":
            continue
        if equals:
            found = value
        elif position + 1 < len(arguments):
            found = arguments[position + 1]
    return found


def _named(kind: str, name: str, table: Mapping[str, type]) -> type:
    if name not in table:
        own = ", or package.module:factory of your own" if kind == "model" else ""
        raise UsageError(f"unknown {kind} {name!r}; choose from {', '.join(table)}{own}")
    return table[name]


def optimizer_names(text: str) -> tuple[str, ...]:
    """Names in a comma-separated list, each known and none twice.

    Raises:
        UsageError: If a name is unknown, repeated or missing.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError("give at least one optimizer, such as --optimizers sgd,kfac")
    for name in names:
        _named("optimizer", name, optim.CONFIGS)
    if len(set(names)) != len(names):
        raise UsageError(f"an optimizer is named twice in {text!r}; name each once")
    return names


def optimizer_field(name: str) -> str:
    """The field of the options that holds an optimizer's settings: "ngd-layer" → "ngd_layer"."""
    return name.replace("-", "_")


def _nested(chosen: Mapping[str, str], *, searched: bool) -> dict[str, tuple[str, type]]:
    """Groups of flags the chosen names bring: field → (prefix, class); a search brings spaces."""
    groups: dict[str, tuple[str, type]] = {}
    model = chosen["model"]
    if ":" not in model:
        groups["model_options"] = ("model", _named("model", model, models.FAMILIES))
    if "schedule" in chosen:
        name = chosen["schedule"]
        groups["schedule_options"] = (
            "schedule",
            _named("schedule", name, training.SCHEDULES),
        )
    if "batch_schedule" in chosen:
        name = chosen["batch_schedule"]
        groups["batch_schedule_options"] = (
            "batch-schedule",
            _named("batch schedule", name, training.BATCH_SCHEDULES),
        )
    for flag in ("optimizers", "optimizer"):
        if flag in chosen:
            for name in optimizer_names(chosen[flag]):
                groups[optimizer_field(name)] = (name, optim.CONFIGS[name])
    if searched:
        (name,) = optimizer_names(chosen["optimizer"])
        kind = optim.CONFIGS[name]
        groups["space"] = ("space", _space_group("Space", kind, optim.default_space(name)))
        schedule = _named("schedule", chosen["schedule"], training.SCHEDULES)
        groups["space_schedule"] = (
            "space.schedule",
            _space_group("SpaceOfSchedule", schedule, {}),
        )
    return groups


def _default(base: type, name: str) -> Any:
    return next(f.default for f in dataclasses.fields(base) if f.name == name)


def extend(base: type, chosen: Mapping[str, str]) -> type:
    """The class of options with the groups of flags that the chosen names bring."""
    groups = _nested(chosen, searched=issubclass(base, TuneOptions))
    extended = dataclasses.make_dataclass(
        base.__name__,
        [
            (
                field,
                Annotated[kind, tyro.conf.arg(name=prefix)],
                dataclasses.field(default_factory=kind),
            )
            for field, (prefix, kind) in groups.items()
        ],
        bases=(base,),
        frozen=True,
        kw_only=True,
    )
    extended.__doc__ = base.__doc__
    return extended


def options_of(base: type, values: Mapping[str, Any]) -> Any:
    """Options from a settings file alone.

    Raises:
        UsageError: If a name or setting is wrong.
    """
    chosen = {flag: values.get(flag) or _default(base, flag) for flag in _names_in(base)}
    return from_values(extend(base, chosen), {**values, **chosen})


def _names_in(base: type) -> list[str]:
    fields = {f.name for f in dataclasses.fields(base)}
    known = ("model", "schedule", "batch_schedule", "optimizers", "optimizer")
    return [flag for flag in known if flag in fields]


def parse(base: type, arguments: Sequence[str], *, verb: str) -> Any:
    """Parse the flags of a verb into an instance of `base` extended by its groups.

    Raises:
        UsageError: If a name or the config file is wrong.
        SystemExit: With 0 after ``--help``, with 2 where tyro refuses a flag.
    """
    text = scan(arguments, "config")
    values = read_toml(Path(text)) if text is not None else {}
    if values.get("verb", verb) != verb:
        raise UsageError(
            f"{text}: settings of kobai {values['verb']}, which kobai {verb} cannot take"
        )
    chosen = {
        flag: scan(arguments, flag) or values.get(flag) or _default(base, flag)
        for flag in _names_in(base)
    }
    extended = extend(base, chosen)
    default = from_values(extended, {**values, **chosen}) if values else extended(**chosen)
    return tyro.cli(extended, args=list(arguments), default=default, prog=f"kobai {verb}")


def read_toml(path: Path) -> dict[str, Any]:
    """A settings file as nested dictionaries, former names of sources as their names now.

    Raises:
        UsageError: If it is missing or no TOML.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file ({error})") from None
    for name in ("source", "suite"):
        if values.get(name) in FORMER_NAMES:
            values[name] = FORMER_NAMES[values[name]]
    return values


def to_values(options: Any) -> dict[str, Any]:
    """Nested options as what TOML can hold; settings that are None are left out."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            values[field.name] = to_values(value)
        elif isinstance(value, Path):
            values[field.name] = str(value)
        elif isinstance(value, tuple):
            values[field.name] = list(value)
        elif value is not None:
            values[field.name] = value
    return values


def from_values(kind: type, values: Mapping[str, Any]) -> Any:
    """The inverse of `to_values` for a dataclass; what is left out takes its default.

    Raises:
        UsageError: If a setting is unknown or of the wrong form.
    """
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known - {"verb"})
    if unknown:
        raise UsageError(
            f"unknown setting {', '.join(unknown)} for {kind.__name__}; known: "
            f"{', '.join(sorted(known))}"
        )
    made = {name: _convert(hints[name], value) for name, value in values.items() if name in known}
    for field in dataclasses.fields(kind):
        # An optional setting that is left out of a file was None when the file was written.
        optional = type(None) in typing.get_args(hints[field.name])
        if field.name not in made and optional:
            made[field.name] = None
    try:
        return kind(**made)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{kind.__name__}: {error}") from None


def _convert(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [one for one in typing.get_args(hint) if one is not type(None)]
        hint = inner[0]
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_values(typing.cast(type, hint), value)
    if typing.get_origin(hint) is tuple and isinstance(value, Iterable):
        return tuple(value)
    if hint is Path:
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
