"""What a study says while it runs."""

import io

from rich.console import Console

from kobai.cli.run_folder import Clock
from kobai.cli.training.tune import _Lines
from kobai.studies import Study, StudyOptions
from kobai.studies.trial import TrialOutcome


class ATask:
    maximise = True


def test_the_end_is_told_again_only_where_the_best_is_better(monkeypatch):
    monkeypatch.setattr(Study, "__init__", lambda self: None)
    monkeypatch.setattr(Study, "done", lambda self: 0)
    study = Study()
    study.task, study.options = ATask(), StudyOptions(trials=4)
    text = io.StringIO()
    tell = _Lines(Console(file=text, width=100), study, Clock())
    for value in (0.1, 0.3, 0.2):
        tell(
            4, TrialOutcome(state="finished", value=value, final={}, seconds=[], epoch=[], curve=[])
        )
    assert text.getvalue().splitlines() == [
        "4 of 4 trials, best so far 0.1, done",
        "4 of 4 trials, best so far 0.3, done",
    ]
