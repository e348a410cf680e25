"""The page is one file that needs nothing, says everything, and lets nobody's text become code."""

import base64
import dataclasses
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from example_results import (
    a_comparison,
    a_history,
    a_plane,
    a_provenance,
    a_row,
    a_spectrum,
    histories,
    with_holes,
)
from kobai.report import build, gather, render
from kobai.report import page as page_module
from kobai.report.page import duration, when
from kobai.results import (
    Claim,
    CriticalRate,
    CriticalRates,
    Reproduction,
    ResultError,
    Verdict,
    save,
)

EVIL = "</script><img src=x onerror=alert(1)>\"'&{{7*7}}%{x}\u2028$a$"


class Page(HTMLParser):
    """What a browser finds in a page: ids, attributes, text, scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.words, self.scripts, self.images = [], [], [], {}, []
        self.inside = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        if tag in {"script", "style"}:
            self.inside = (tag, found.get("id"), found.get("type"))
        if tag == "img":
            self.images.append(found)

    def handle_endtag(self, tag):
        if tag in {"script", "style"}:
            self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data
        else:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def data(self):
        return json.loads(self.scripts["script", "data", "application/json"])

    @property
    def policy(self):
        return next(a["content"] for t, a in self.tags if a.get("http-equiv"))


def a_run(folder):
    save(a_provenance(), folder, "run")
    save(a_comparison(), folder, "comparison")
    for history in histories():
        save(history, folder, f"history-{history.label}")
    save(a_plane(), folder, "plane")
    save(a_spectrum(), folder, "spectrum-sgd-0")
    (folder / "run.toml").write_text('[data]\nname = "digits"\n')
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = build(a_run(tmp_path_factory.mktemp("runs") / "demo"))
    assert path.name == "report.html"
    return Page(path.read_text("utf-8"))


def test_it_is_one_file_that_asks_for_nothing(whole):
    for tag, attributes in whole.tags:
        for name in ("src", "href", "srcset", "action", "poster"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("#", "data:")), (tag, name, value[:60])
        assert not any(name.startswith("on") for name in attributes), "no inline handlers"
    style = whole.scripts["style", None, None]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in whole.policy
    assert "unsafe-eval" not in whole.policy
    assert "unsafe-inline" not in whole.policy.split("script-src")[1].split(";")[0]
    script = whole.scripts["script", None, None]
    assert "fetch(" not in script
    assert "showSendToCloud: false" in script


def test_the_policy_names_exactly_the_two_scripts(whole):
    packed = whole.scripts["script", "plotly", "application/gzip+base64"]
    plotly = gzip.decompress(base64.b64decode(packed))
    assert b"plotly.js v" in plotly[:60]
    hashes = [
        "sha256-" + base64.b64encode(hashlib.sha256(code).digest()).decode()
        for code in (whole.scripts["script", None, None].encode(), plotly)
    ]
    assert re.findall(r"'(sha256-[^']+)'", whole.policy) == hashes


def test_it_says_what_was_run(whole):
    for words in (
        "three optimizers",
        "mlp 64-32-10",
        "2,410 parameters",
        "2 January 2026, 03:04",
        "took 1 min 1 s",
        "kfac leads",
        "1 of 2 self-checks passed",
        "6 of 6 runs finished",
        "kobai compare --data digits",
        'name = "digits"',
        "95.00",
        "± 0.10",
        "0123456789ab",
        "history-kfac-1.json",
    ):
        assert words in whole.text, words


def test_sections_tables_and_controls_can_be_reached(whole):
    assert len(whole.ids) == len(set(whole.ids))
    links = [a["href"][1:] for t, a in whole.tags if t == "a" and a["href"].startswith("#")]
    assert set(links) <= set(whole.ids)
    assert {"results", "notes", "training", "landscape", "curvature", "checks", "methods"} <= set(
        links
    )
    assert next(a for t, a in whole.tags if t == "html")["lang"] == "en"
    assert all(a.get("alt") for t, a in whole.tags if t == "img")
    assert all(a.get("aria-label") for t, a in whole.tags if a.get("role") in {"img", "region"})
    script = whole.scripts["script", None, None]
    for needed in re.findall(r'byId\("([\w-]+)"\)', script):
        assert needed in whole.ids, f"the script looks for #{needed}"


def test_pictures_stand_in_where_scripts_do_not_run(whole):
    assert len(whole.images) == 4
    assert all(image["src"].startswith("data:image/png;base64,") for image in whole.images)
    assert sum(tag == "noscript" for tag, _ in whole.tags) == 3


def test_the_numbers_on_the_page_are_the_results(whole):
    data, plane = whole.data, a_plane()
    field = data["planes"][0]["fields"]["loss"]
    values = np.frombuffer(base64.b64decode(field["values"]), dtype="<f4").reshape(13, 10)
    assert values == pytest.approx(plane.fields["loss"], rel=1e-6)
    run = next(run for run in data["runs"] if run["label"] == "kfac-1")
    assert run["columns"]["test_loss"] == pytest.approx(a_history("kfac", 1).test_loss, rel=1e-5)
    assert "validation_loss" not in run["columns"]
    assert data["order"] == ["sgd", "adam", "kfac"]
    band = data["bands"]["kfac"]["test_loss"]
    assert band["seeds"] == 2
    assert data["spectra"][0]["values"] == [-0.02, 0.1, 0.5, 4.0]
    assert len({style["color"] for style in data["optimizers"].values()}) == 3


@pytest.fixture
def no_images(monkeypatch):
    """Without the images, which take most of the time and are tested with the plots."""
    monkeypatch.setattr(page_module, "_images", lambda _: {})


@pytest.mark.usefixtures("no_images")
def test_the_same_results_give_the_same_page(tmp_path):
    contents = gather(a_run(tmp_path / "demo"))
    assert render(contents) == render(contents)


@pytest.mark.usefixtures("no_images")
def test_nobodys_text_becomes_code(tmp_path):
    save(a_provenance(command=EVIL, device=EVIL, started=EVIL), tmp_path, "run")
    save(a_comparison(title=EVIL, note=EVIL, rows=(a_row(EVIL), a_row("b"))), tmp_path, "c")
    save(a_history(EVIL, label=EVIL, note=EVIL), tmp_path, "h")
    plane = a_plane(label=EVIL, axis_names=(EVIL, EVIL), points={EVIL: np.zeros(2)}, note=EVIL)
    fields = {EVIL: plane.fields["loss"], "loss": plane.fields["loss"]}
    save(a_plane(**{**vars(plane), "fields": fields}), tmp_path, "p")
    save(a_spectrum(label=EVIL, status=EVIL, matrix=EVIL), tmp_path, "s")
    (tmp_path / "run.toml").write_text(EVIL)
    text = build(tmp_path).read_text("utf-8")
    page = Page(text)
    assert all(image["src"].startswith("data:") for image in page.images)
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "<img src=x" not in text
    assert "{{7*7}}" in page.text, "shown as typed, not evaluated"
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert page.data["runs"][0]["label"] == EVIL
    assert EVIL in page.data["planes"][0]["fields"]


@pytest.mark.parametrize(
    ("name", "result", "present", "missing"),
    [
        ("run", a_provenance(), "kobai compare", ["No runs yet", "No training history yet",
         "No landscape yet", "No curvature measured yet", "No self-checks"]),
        ("h", a_history(), "sgd-0", ["No landscape yet", "No provenance was saved"]),
        ("p", with_holes(a_plane()), "3 of 130 values of loss", ["No runs yet"]),
        ("p", a_plane(fields={"loss": np.full((13, 10), np.nan)}), "130 of 130", ["No runs yet"]),
        ("p", a_plane(fields={}, points={}, trajectories=()), "between the ends", ["No runs yet"]),
        ("s", a_spectrum(), "sgd-0", ["No training history yet"]),
        ("c", a_comparison(rows=()), "three optimizers", ["No curvature measured yet"]),
    ],
    ids=["provenance", "history", "holes", "nothing finite", "no fields", "spectrum", "no rows"],
)  # fmt: skip
def test_a_half_finished_folder_gives_a_page_that_says_so(tmp_path, name, result, present, missing):
    save(result, tmp_path, name)
    page = Page(build(tmp_path).read_text("utf-8"))
    assert present in page.text
    for words in missing:
        assert words in page.text


def test_damaged_results_are_named_on_the_page(tmp_path):
    save(a_history(), tmp_path, "good")
    save(a_plane(), tmp_path, "bad")
    (tmp_path / "bad.npz").write_bytes(b"PK")
    page = Page(build(tmp_path).read_text("utf-8"))
    assert "The result “bad” could not be read and is not on this page." in page.text
    assert "damaged, truncated or of another run" in page.text
    assert str(tmp_path) not in page.text
    assert "1 thing to look at" in page.text


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(ResultError, match="no results here"):
        build(tmp_path)
    with pytest.raises(ResultError, match="no such folder"):
        build(tmp_path / "nowhere")
    assert not (tmp_path / "report.html").exists()


def test_a_run_that_diverged_at_once_has_a_page(tmp_path):
    lost = np.full(9, np.inf)
    save(a_history(status="diverged", train_loss=lost, test_loss=lost), tmp_path, "h")
    page = Page(build(tmp_path).read_text("utf-8"))
    assert "0 of 1 runs finished, 1 diverged" in page.text
    assert "diverged: sgd-0" in page.text


def test_times_for_people():
    assert when("2026-01-02T03:04:05+09:00") == "2 January 2026, 03:04"
    assert when("yesterday") == "yesterday"
    assert [duration(s) for s in (0.5, 41.2, 125.0, 11520.0)] == [
        "0.50 s",
        "41 s",
        "2 min 5 s",
        "3 h 12 min",
    ]


def a_reproduction(figure):
    told = "Waves rise as the wind grows, and fall again with it"
    claim = Claim(key="rise", figure="1", where="abstract", text=told)
    return Reproduction(
        source="waves", figure=figure, title="Waves", scale="quick", seed=0, seconds=1.0,
        claims=(claim,), findings=(),
        verdicts=(Verdict(claim="rise", verdict="holds", because="2 > 1"),),
    )  # fmt: skip


def a_rate_table():
    rate = CriticalRate(
        method="gradient descent", rule="2/λ_max", value=0.5, error=0.01, eigenvalue=4.0,
        eigenvalue_error=0.08, status="converged",
    )  # fmt: skip
    return CriticalRates(
        label="sgd-0", optimizer="sgd", seed=0, matrix="hessian", rates=(rate,), damping=0.0,
        num_products=0,
    )  # fmt: skip


def _page_of(folder, config, **results):
    for name, result in results.items():
        save(result, folder, name)
    (folder / "run.toml").write_text(config)
    return Page(build(folder).read_text(encoding="utf-8"))


def _heading(page):
    """What the one h1 says."""
    return re.search(r"<h1>(.*?)</h1>", page, re.DOTALL).group(1)


@pytest.mark.parametrize(
    ("config", "results", "title"),
    [
        ('verb = "train"\ndata = "blobs"\n', {"run_sgd-0": a_history()}, "sgd on blobs"),
        (
            'verb = "landscape"\nruns = ["runs/mnist"]\nlabel = "sgd-0,kfac-0"\n',
            {"plane_random": a_plane()},
            "Landscape of sgd-0, kfac-0 in mnist",
        ),
        (
            'verb = "landscape"\nruns = []\nmodel = "cnn"\ndata = "digits"\n',
            {"plane_random": a_plane()},
            "Landscape of cnn on digits",
        ),
        ("", {"plane": a_plane()}, "Landscape of between the ends"),
        ("", {"measure": a_spectrum("adam")}, "Curvature of adam-0"),
        ("", {"figure_1": a_reproduction("1")}, "Waves"),
        ("", {"figure_1": a_reproduction("1"), "whole": a_reproduction("")}, "Waves, made again"),
        ("no = toml = at all", {"run": a_provenance()}, "folder"),
    ],
)
def test_the_title_says_what_the_page_is_about(tmp_path, config, results, title):
    folder = tmp_path / "folder"
    folder.mkdir()
    _page_of(folder, config, **results)
    assert _heading((folder / "report.html").read_text(encoding="utf-8")) == title


def test_only_what_the_verb_brings_is_called_missing(tmp_path):
    page = _page_of(tmp_path, 'verb = "landscape"\nruns = ["a"]\n', plane_random=a_plane())
    assert "No runs yet" not in page.text
    assert "No curvature" not in page.text
    assert page.ids.index("landscape") < page.ids.index("checks")
    assert "training" not in page.ids


def test_claims_come_first_and_words_stand_flush_left(tmp_path):
    page = _page_of(tmp_path, "", whole=a_reproduction(""), rates=a_rate_table(), plane=a_plane())
    order = ["findings", "notes", "landscape", "curvature", "methods"]
    assert [name for name in page.ids if name in order] == order
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<td class="w">gradient descent</td>' in text
    assert '<td class="m">0.500</td>' in text
    assert re.search(r'<th scope="row" class="w long"><span>Waves rise', text)
    assert re.search(r'<td class="w">holds</td>', text)


def test_a_point_measured_again_is_shown_once(tmp_path):
    save(a_spectrum("sgd"), tmp_path, "spectrum_sgd-0")
    save(a_spectrum("adam"), tmp_path, "spectrum_adam-0")
    save(a_spectrum("sgd", trace=7.0), tmp_path, "measure_hessian_sgd-0")
    contents = gather(tmp_path)
    assert [(s.label, s.trace) for s in contents.spectra] == [("adam-0", 6.0), ("sgd-0", 7.0)]
    assert contents.superseded == ["spectrum_sgd-0"]
    page = Page(render(contents))
    assert "not those of spectrum_sgd-0" in page.text


def test_paths_are_explained_only_where_there_are_some(tmp_path):
    save(a_plane(trajectories=(), points={}), tmp_path, "p")
    assert "Paths are projected" not in Page(render(gather(tmp_path))).text
    save(a_plane(), tmp_path, "q")
    assert "Paths are projected" in Page(render(gather(tmp_path))).text


def test_claims_that_were_tested_stand_before_those_that_were_not(tmp_path):
    whole = a_reproduction("")
    late = Claim(key="calm", figure="2", where="p. 3", text="Calm follows")
    not_run = Verdict(claim="calm", verdict="not run", because="figure 2 was not made")
    whole = dataclasses.replace(
        whole, claims=(late, *whole.claims), verdicts=(not_run, *whole.verdicts)
    )
    page = _page_of(tmp_path, "", whole=whole)
    assert "of 1 claims tested 1 hold; 1 belong to figures that were not made" in page.text
    assert page.text.index("Waves rise") < page.text.index("Calm follows")
