import io

import pytest
import torch
from rich.console import Console

from kobai.training import ConsoleProgress, Progress, train


def _train(problem, **options):
    return train(
        problem,
        torch.optim.SGD(problem.model.parameters(), lr=0.1),
        generator=torch.Generator().manual_seed(3),
        **{"epochs": 2, "batch_size": 10, "label": "sgd, seed 0", **options},
    )


def test_it_is_told_everything(make_problem):
    calls = []

    class Listener:
        def begin(self, label, *, step, total):
            calls.append(("begin", label, step, total))

        def step(self, step, *, loss):
            calls.append(("step", step, loss))

        def record(self, step, row):
            calls.append(("record", step, row["train_loss"]))

        def end(self, status, note):
            calls.append(("end", status, note))

    listener = Listener()
    assert isinstance(listener, Progress)
    history = _train(make_problem(), progress=listener)
    assert calls[0] == ("begin", "sgd, seed 0", 0, 10)
    assert calls[-1] == ("end", "finished", "")
    assert [c[1:] for c in calls if c[0] == "step"] == [
        (k + 1, loss) for k, loss in enumerate(history.step_loss)
    ]
    assert [c[1:] for c in calls if c[0] == "record"] == list(
        zip(history.step, history.train_loss, strict=True)
    )


def test_silent_by_default(make_problem, capsys):
    _train(make_problem())
    assert capsys.readouterr() == ("", "")


def test_nothing_but_a_line_now_and_then_off_a_terminal(make_problem):
    stream = io.StringIO()
    with ConsoleProgress(console=Console(file=stream)) as progress:
        _train(make_problem(), progress=progress)
    assert stream.getvalue() == ""
    with ConsoleProgress(2, console=Console(file=stream), interval=1e-9) as progress:
        _train(make_problem(), progress=progress)
        _train(make_problem(), progress=progress)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 20
    assert lines[0].startswith("sgd, seed 0 (run 1 of 2): step 1/10 (10 %), loss ")
    assert "validation accuracy" in lines[0]
    assert "left" in lines[-1]
    assert "run 2 of 2" in lines[-1]


def test_bars_on_a_terminal(make_problem):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    with ConsoleProgress(2, console=console) as progress:
        for _ in range(2):
            _train(make_problem(), progress=progress)
    shown = stream.getvalue()
    assert "all runs" in shown
    assert "sgd, seed 0" in shown
    assert "finished" in shown


def test_time_left_counts_the_runs_to_come():
    progress = ConsoleProgress(3, console=Console(file=io.StringIO()))
    progress.begin("a", step=0, total=100)
    progress._run_began = 0.0
    assert progress._left(50, 10.0) == pytest.approx(10.0 + 2 * 20.0)


@pytest.mark.parametrize("options", [{"runs": 0}, {"interval": 0}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="positive"):
        ConsoleProgress(**options)
