"""The command line, ``kobai VERB``: parse, call, save; the computation is in the library.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted (with the line that goes on).
"""

import importlib
import os
import shlex
import sys

from kobai import __version__

# Before torch starts its threads: waiting threads give their core up instead of spinning on it.
# On a machine that is shared, spinning made a small training run 30 times slower (30.4 s against
# 1.0 s for ten epochs on the digits, two threads on two busy cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["VERBS", "main"]

#: Verb → (module with its ``main(arguments, command)``, what it does in one line).
VERBS = {
    "compare": (
        "training.compare",
        "train several optimizers on one problem: table, curves, landscape",
    ),
    "train": ("training.train", "one run with checkpoints"),
    "measure": (
        "measure.verb",
        "eigenvalues, trace, critical learning rate of a run or a fresh model",
    ),
    "landscape": ("landscape.verb", "lines, planes, volumes and true minima of runs or any model"),
    "reproduce": ("reproduce", "the figures and tables of a source, made again"),
    "gallery": ("gallery", "a guided tour of the optimization algorithms, as an HTML book"),
    "tune": ("training.tune", "a study: Bayesian search, resumable, many workers"),
    "report": ("report", "rebuild the page of a run folder"),
    "data": ("data", "list, fetch and verify data sets"),
}

# Verbs without a --resume: what they do is done again as a whole.
_WHOLE = ("measure", "report", "data")


def main(arguments: list[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: Words after ``kobai``; default: those of this process.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"kobai {__version__}")
        return 0
    if words[0] not in VERBS:
        print(f"kobai: unknown verb {words[0]!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    # Models and data of the user's own are named package.module:factory and live where they work.
    sys.path.insert(0, "")
    try:
        # Inside, as an import takes seconds in which people press Ctrl-C.
        verb = importlib.import_module(f"kobai.cli.{VERBS[words[0]][0]}")
        return verb.main(words[1:], f"kobai {shlex.join(words)}")
    except (ValueError, TypeError) as error:
        print(f"kobai: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"kobai: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(_stopped(words), file=sys.stderr)
        return 130


def _stopped(words: list[str]) -> str:
    """What to say after a stop that did not wait, with the line that goes on where there is one."""
    if words[0] in _WHOLE:
        return "kobai: stopped at once; the same command starts again"
    kept = [word for word in words if word not in ("--fresh", "--resume")]
    return f"kobai: stopped at once. Go on with:\n  kobai {shlex.join(kept)} --resume"


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in VERBS.items())
    return (
        "kobai: the geometry of training neural networks\n\n"
        f"usage: kobai VERB [flags]\n\n{verbs}\n\n"
        "kobai VERB --help shows every flag with its default and unit."
    )
