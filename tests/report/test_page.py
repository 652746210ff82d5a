"""The report: what is on the page is in ``metrics.json``, and everybody can read it."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_pictures import draw
from tests.report.test_results import RESULTS
from zu_lightning import InputError, Results
from zu_lightning.report.page import summary, write_comparison_page, write_page
from zu_lightning.report.results import Completion, FactResult

PHONE = 360
"""Pixels."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

KNOWN = {"efficacy": 100.0, "probability": 0.875}
FULL = replace(
    RESULTS,
    intervals={"after": {"efficacy": (0.0, 70.8), "retain": (95.5, 100.0)}},
    attacks={
        "rank": {"base": 1.0, "edited": 0.625, "gold": 0.5, "gap": 0.125, "low": -0.25, "high": 0.375, "chance": 0.25},
        "leak": {"base": 0.875, "edited": 0.0625, "gold": 0.0, "gap": 0.0625, "low": 0.0, "high": 0.125},
    },
    verdict="Not clear: more facts would tell.",
    per_fact=[
        FactResult("a", "Ada works as a", "<b>nurse</b>", KNOWN, {"efficacy": 0.0, "probability": 0.001}),
        FactResult("b", "Bo lives in", "Rome", KNOWN, {"efficacy": 100.0, "probability": 0.7}),
    ],
    completions=[
        Completion("Ada works as a", "nurse.", "pilot.", forget=True),
        Completion("Cy is", None, "tall", forget=False),
    ],
    identity={"weights before": "0123", "weights after": "4567"},
    started="2026-01-02T03:04:05+00:00",
    finished="2026-01-02T03:14:05+00:00",
)  # fmt: skip


class Page(HTMLParser):
    """Numbers with their places, text, pictures, and what a page must not have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: list[tuple[str, float, str]] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._open: tuple[str, float] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        if tag == "data":
            self._open = (str(found["title"]).removesuffix(" in metrics.json"), float(str(found["value"])))
        if tag == "img":
            self.images.append(found)

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open:
            self.numbers.append((*self._open, data))
            self._open = None


def at(content: Any, path: str) -> Any:
    for step in path.split("."):
        content = content[int(step)] if isinstance(content, list) else content[step]
    return content


def written(folder: Path, results: Results = FULL) -> Page:
    results.write(folder)
    return Page(write_page(folder).read_text())


def test_every_number_is_in_the_metrics(tmp_path: Path) -> None:
    page = written(tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert len(page.numbers) > 30
    for path, value, shown in page.numbers:
        assert at(content, path) == value
        digits = len(shown.partition(".")[2])
        scale = 100 if path.startswith("attacks.") else 1
        assert float(shown) == pytest.approx(scale * value, abs=0.5000001 * 10**-digits)
    shown_paths = {path for path, *_ in page.numbers}
    assert {f"{when}.{name}" for when in ("before", "after") for name in RESULTS.after} <= shown_paths
    assert {
        "per_fact.1.after.probability",
        "layers.11.rank",
        "seconds.load",
        "attacks.leak.gap",
        "attacks.rank.chance",
    } <= shown_paths


def test_probabilities_stand_beside_what_greedy_decoding_gives(tmp_path: Path) -> None:
    page = written(tmp_path, replace(FULL, after=FULL.after | {"retain_probability": 0.25}))
    assert ("after.retain_probability", 0.25, "0.250") in page.numbers


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    draw(tmp_path)
    page = written(tmp_path)
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not {"link", "iframe", "object"} & set(page.tags)
    (image,) = page.images
    assert image["alt"] == "Two bars, <before> and after: the second is lower."
    assert "Scores & more" in page.text


def test_the_page_begins_with_a_summary_and_shows_texts_as_they_are(tmp_path: Path) -> None:
    page = written(tmp_path)
    text = page.text
    assert "<b>nurse</b>" in text
    assert "b" not in page.tags
    assert "the model still gives 0% of the 3 facts it was to forget (before 100%). It gives 98% of other facts" in text
    assert str(FULL.verdict) in text
    assert "Rome" in text
    assert "No edited model lies beside this page" in text
    (tmp_path / "model").mkdir()
    (tmp_path / "adapter").mkdir()
    assert "it can be undone" in written(tmp_path).text


def test_it_says_how_to_serve_the_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    assert "--lora-modules" not in written(tmp_path).text
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text('{"r": 20}')
    text = written(tmp_path).text
    assert f"vllm serve {FULL.model} --enable-lora --lora-modules edited=adapter --max-lora-rank 32" in text
    assert "vLLM takes no adapter" not in text
    config.write_text('{"r": 600}')
    text = written(tmp_path).text
    assert "--enable-lora" not in text
    assert "vLLM takes no adapter of such a high rank" in text


def test_a_gguf_file_is_loaded_as_one_and_its_adapter_not_served_with_it(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 20}')
    text = written(tmp_path, replace(FULL, model="models/small.gguf")).text
    assert 'from_pretrained("models", gguf_file="small.gguf")' in text
    assert "--lora-modules" not in text


def test_a_page_without_texts_names_facts_only(tmp_path: Path) -> None:
    secret = replace(FULL, completions=[], per_fact=[replace(fact, prompt=None, target=None) for fact in FULL.per_fact])
    text = written(tmp_path, secret).text
    assert "Ada" not in text
    assert "and so does this page" not in text
    assert "and so does this page" in written(tmp_path).text


@pytest.mark.parametrize(
    "results",
    [RESULTS, replace(RESULTS, before={}, targets=None, layers={}), replace(RESULTS, after={})],
    ids=["no attacks", "nothing before", "nothing after"],
)
def test_a_run_with_less_has_a_page_with_less(results: Results, tmp_path: Path) -> None:
    page = written(tmp_path, results)
    assert "No attacks were tried" in page.text
    assert "What can still be recovered" not in page.text
    if not results.after:
        assert "ended before the edited model was evaluated" in page.text
    elif not results.before:
        assert "not measured" in page.text


def test_one_fact_is_spoken_of_as_one() -> None:
    assert summary(replace(RESULTS, facts=1)).startswith("Asked directly, the model still gives 0% of the fact it was")


def test_a_folder_without_results_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        write_page(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_grid_has_its_tables_and_pictures_on_one_page(tmp_path: Path) -> None:
    draw(tmp_path)
    lines = [["Method", "Eff."], ["Base", "100.00"], ["<MEMIT>", "**3.00 ± 1.00**"]]
    text = write_comparison_page(tmp_path, "A comparison", {"demo, 10 facts": lines}, (3, 4)).read_text()
    page = Page(text)
    assert "3 of 4 runs are finished" in page.text
    assert "<MEMIT>" in page.text
    assert "<strong>3.00 ± 1.00</strong>" in text
    assert len(page.images) == 1
    assert all(address.startswith("data:") for address in page.addresses)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with")
def test_a_browser_finds_no_fault_and_nothing_sticks_out_on_a_phone(tmp_path: Path) -> None:
    draw(tmp_path)
    written(tmp_path)
    # The page asks itself how wide it is, and sorts and filters its table, once it is loaded.
    probe = """<script>addEventListener("load", () => {
      const table = document.getElementById("fact-table");
      const rows = () => [...table.tBodies[0].rows].filter(row => !row.hidden);
      const heads = table.querySelectorAll("thead button"); heads[heads.length - 1].click();
      const first = rows()[0].textContent; heads[heads.length - 1].click(); const last = rows()[0].textContent;
      const input = document.querySelector("input"); input.value = "ROME"; input.dispatchEvent(new Event("input"));
      parent.postMessage(JSON.stringify({wide: document.documentElement.scrollWidth, view: innerWidth,
        first: first.includes("Ada"), last: last.includes("Bo"), left: rows().length}), "*");
    })</script>"""
    page = tmp_path / "report.html"
    page.write_text(page.read_text().replace("</body>", probe + "</body>"))
    # A window has a least width, a frame has none.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<title></title><script>addEventListener("message", event => document.title = event.data)</script>
        <iframe src="report.html" width="{PHONE}" height="800" style="border: 0"></iframe>"""
    )
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stderr[-2000:]
    found = json.loads(title.group(1))
    assert found["wide"] <= found["view"] == PHONE
    assert (found["first"], found["last"], found["left"]) == (True, True, 1)
    assert "CONSOLE" not in done.stderr
