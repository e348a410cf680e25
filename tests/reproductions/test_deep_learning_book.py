"""The gallery: pages, claims, the book, the verb; and the formulas its pages compute with."""

import importlib
import re

import numpy as np
import pytest
import torch

from kobai.cli.gallery import main, translated
from kobai.problem import Analytic
from kobai.reproductions import deep_learning_book, source
from kobai.reproductions.deep_learning_book.book import MOVING, printed
from kobai.reproductions.deep_learning_book.motion import animation
from kobai.reproductions.deep_learning_book.networks import classifier, level, pictures
from kobai.reproductions.deep_learning_book.page import judge
from kobai.reproductions.deep_learning_book.pages.batch_norm import expansion
from kobai.reproductions.deep_learning_book.pages.continuation import lagged_sums
from kobai.reproductions.deep_learning_book.pages.coordinate import sparse_coding
from kobai.reproductions.deep_learning_book.pages.empirical_risk import _gradients
from kobai.reproductions.deep_learning_book.pages.long_term import unrolled_loss
from kobai.reproductions.deep_learning_book.surface_paths import contours, walk
from kobai.results import Panel, Panels, Series, load

QUICK = deep_learning_book.Config(scale="quick")
CHEAP = ("8.2.6", "8.2.8", "8.6.2")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a few pages and the book."""
    folder = tmp_path_factory.mktemp("gallery")
    config = deep_learning_book.Config(scale="quick", figure=",".join(CHEAP))
    return folder, deep_learning_book.run(config, folder)


def test_every_section_of_the_chapter_has_a_page():
    names = [page.name for page in deep_learning_book.PAGES]
    wanted = ["8.1.1", "8.1.2", "8.1.3", *(f"8.2.{i}" for i in range(1, 9)), "8.3.1", "8.3.2",
              "8.4", "8.5", "8.5.4", "8.6.1", "8.6.2", "8.6.3",
              *(f"8.7.{i}" for i in range(1, 7))]  # fmt: skip
    assert names == wanted
    assert source("deep-learning-book") is deep_learning_book
    assert source("chapter8") is deep_learning_book


def test_claims_are_keyed_by_their_section_and_asked_for_once():
    keys = [claim.key for claim in deep_learning_book.EXPECTED]
    assert len(set(keys)) == len(keys)
    for claim in deep_learning_book.EXPECTED:
        assert claim.key.startswith(f"{claim.figure}-")
        assert claim.where == f"section {claim.figure}"


def test_sections_name_their_pages():
    assert deep_learning_book.named_by("8.6") == "8.6.1,8.6.2,8.6.3"
    assert deep_learning_book.named_by("8.5.2") == "8.5"
    assert deep_learning_book.named_by("8.3.2, 8.4") == "8.3.2,8.4"
    assert deep_learning_book.named_by("all") == "all"
    with pytest.raises(ValueError, match="no page for section"):
        deep_learning_book.named_by("9.1")


def test_pages_judge_exactly_their_claims(made):
    folder, summary = made
    pages = {page.name: page for page in deep_learning_book.PAGES}
    for name in CHEAP:
        record = load(folder, f"figure_{name}")
        assert {v.claim for v in record.verdicts} == set(pages[name].claims)
    assert sum(v.verdict != "not run" for v in summary.verdicts) == sum(
        len(pages[name].claims) for name in CHEAP
    )


def test_closed_forms_hold_on_the_pages(made):
    """Stationary variance, orthogonal steps, termination in P steps: all with a prediction."""
    folder, _ = made
    verdicts = {v.claim: v.verdict for name in CHEAP
                for v in load(folder, f"figure_{name}").verdicts}  # fmt: skip
    for claim in ("8.2.6-noise", "8.2.6-bias", "8.6.2-zigzag", "8.6.2-terminates",
                  "8.6.2-variants", "8.2.8-bound"):  # fmt: skip
        assert verdicts[claim] == "holds", claim


def test_the_book_is_one_file_without_scripts_or_connections(made):
    folder, _ = made
    text = (folder / "index.html").read_text()
    assert "<script" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    for name in CHEAP:
        assert f'id="s{name.replace(".", "-")}"' in text
    assert text.count("(not made yet)") == len(deep_learning_book.PAGES) - len(CHEAP)
    assert 'class="motion"' in text
    assert "The code that made this page" in text


def test_finished_pages_are_kept(made):
    folder, _ = made
    before = (folder / "figure_8.6.2.json").stat().st_mtime_ns
    lines: list[str] = []
    deep_learning_book.run(
        deep_learning_book.Config(scale="quick", figure="8.6.2"), folder, progress=lines.append
    )
    assert (folder / "figure_8.6.2.json").stat().st_mtime_ns == before
    assert any("made before, kept" in line for line in lines)


@pytest.mark.parametrize("name", ["8.2.1", "8.2.3", "8.3.2", "8.5", "8.6.3", "8.7.1", "8.7.2"])
def test_scripts_on_the_pages_run(name):
    page = next(page for page in deep_learning_book.PAGES if page.name == name)
    assert printed(page.script()).strip()


@pytest.mark.slow
@pytest.mark.parametrize("page", deep_learning_book.PAGES, ids=lambda page: page.name)
def test_every_page_is_made_and_every_script_runs(page):
    outcome = page.make(QUICK)
    assert {v.claim for v in outcome.verdicts} == set(page.claims)
    assert outcome.results
    assert printed(page.script()).strip()


def test_the_verb_translates_to_reproduce(capsys):
    assert translated(["--quick", "--section", "8.6", "--out", "x"]) == [
        "--scale", "quick", "--figure", "8.6.1,8.6.2,8.6.3", "--out", "x"]  # fmt: skip
    assert translated(["--section=8.4"])[:2] == ["--figure", "8.4"]
    assert translated([])[-2:] == ["--out", "runs/gallery"]
    assert main(["--help"], "kobai gallery --help") == 0
    assert "8.7.6" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--section wants"):
        translated(["--section"])


def test_expansion_of_a_step_adds_up_to_the_exact_output():
    rng = np.random.default_rng(0)
    w, g = rng.standard_normal(7), rng.standard_normal(7)
    terms = expansion(w, g, 0.1)
    assert np.isclose(terms.sum(), np.prod(w - 0.1 * g), rtol=1e-12)
    assert np.isclose(terms[0], np.prod(w))
    first = -0.1 * sum(g[i] * np.prod(np.delete(w, i)) for i in range(7))
    assert np.isclose(terms[1], first)


def test_single_gradients_average_to_the_gradient():
    problem = classifier(pictures(QUICK, limit=40), (5,), seed=0, dtype=torch.float64)
    data, theta = problem.train.first(40), problem.space.theta()
    rows = _gradients(problem, data, theta)
    torch.testing.assert_close(rows.mean(0), problem.objective().grad(theta))


def test_alternating_blocks_never_raise_the_sparse_coding_cost():
    values, zeros = sparse_coding(QUICK)["alternating blocks"]
    assert np.diff(values).max() <= 1e-9 * values[0]
    assert zeros[-1] > 0.1


def test_lagged_sums_are_sums_of_the_marked_digits(generator):
    (x, y), lag = lagged_sums(200, 16, 14, generator)
    digits, marks = x[..., 0] + 1, x[..., 1]
    assert torch.equal(marks.sum(1), torch.full((200,), 2.0))
    torch.testing.assert_close((digits * marks).sum(1), y.float())
    assert torch.equal(15 - marks.argmax(1), lag.long())


def test_the_recurrent_loss_is_the_loop_written_out():
    h = np.tanh(1.3 * np.tanh(1.3 * 0.1 - 0.2) - 0.2)
    loss = unrolled_loss(torch.tensor(1.3).double(), torch.tensor(-0.2).double(), 2)
    assert np.isclose(float(loss), 0.5 * (h + 0.7) ** 2)


def test_walks_hold_every_point_and_level_lines_their_level():
    def bowl(theta: torch.Tensor) -> torch.Tensor:
        return theta.square().sum()

    objective = Analytic(bowl, torch.tensor([1.0, 2.0]).double())
    points = walk(objective, torch.optim.SGD(objective.space.module.parameters(), lr=0.25), 3)
    np.testing.assert_allclose(points, np.array([1.0, 2.0]) * 0.5 ** np.arange(4)[:, None])
    line = contours(bowl, (-2, 2), (-2, 2), np.array([1.0]))
    radius = np.hypot(line.x, line.y)
    np.testing.assert_allclose(radius[np.isfinite(radius)], 1.0, atol=2e-3)


def test_animations_move_labelled_curves_only():
    ground = Series(label="", x=np.array([0.0, 1.0]), y=np.array([0.0, 1.0]))
    moving = Series(label="a & b", x=np.array([0.2, 0.4, 0.6]), y=np.array([0.1, 0.2, 0.3]))
    drawn = str(animation(Panel(title="t", x_label="x", y_label="y", series=(ground, moving))))
    assert drawn.count("<circle") == 1
    assert drawn.count("<animate ") == 2
    assert "a &amp; b" in drawn
    values = re.findall(r'values="([^"]+)"', drawn)
    assert all(len(v.split(";")) == 3 for v in values)
    with pytest.raises(ValueError, match="nothing moves"):
        animation(Panel(title="t", x_label="x", y_label="y", series=(ground,)))


def test_animated_results_have_a_panel_of_paths(made):
    folder, _ = made
    result = load(folder, f"figure_8.6.2_{MOVING}")
    assert isinstance(result, Panels)
    assert any(series.label for series in result.panels[0].series)


def test_verdicts_follow_from_their_conditions():
    words = [judge("c", *c, because="").verdict for c in ((True, True), (True, False), (False,))]
    assert words == ["holds", "holds in part", "does not hold"]


def test_pages_take_the_users_network_or_say_why_not(tmp_path):
    for page in deep_learning_book.PAGES:
        assert page.network_note("") == ""
        note = page.network_note("cnn")
        assert ("Network: cnn" in note) != ("--model has no part here: " in note)
    config = deep_learning_book.Config(scale="quick", figure="8.3.1,8.2.8", model="linear")
    deep_learning_book.run(config, tmp_path)
    assert "Network: linear" in load(tmp_path, "figure_8.3.1").note
    assert "functions here are formulas" in load(tmp_path, "figure_8.2.8").note


def test_the_users_network_sees_pictures_as_they_are():
    splits = pictures(QUICK, limit=20)
    own = classifier(splits, (5,), seed=0, model="cnn")
    assert own.train.first(3).inputs.shape == (3, *splits.input_shape)
    assert any(isinstance(m, torch.nn.Conv2d) for m in own.model.modules())
    flat = classifier(splits, (5,), seed=0)
    assert flat.train.first(3).inputs.ndim == 2


def test_runs_of_unequal_length_end_in_nan():
    rows = level([np.ones(3), np.ones(1)])
    np.testing.assert_array_equal(rows, [[1, 1, 1], [1, np.nan, np.nan]])


def test_configurations_refuse_nonsense():
    with pytest.raises(ValueError, match="seed is"):
        deep_learning_book.Config(seed=-1)


def test_the_former_name_imports_with_a_warning():
    with pytest.warns(DeprecationWarning, match="deep_learning_book"):
        module = importlib.import_module("kobai.reproductions.chapter8")
    assert module.Config is deep_learning_book.Config
