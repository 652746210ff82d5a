"""The library without Lightning: what importing it loads, the weights of ``fit``, and the built wheel."""

import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import equal

from tests.conftest import DEMO, ROOT, SHORT_RUN, run
from zu_lightning import EditableLM, Erase, Request, read_facts, read_texts, unlearn


def python(code: str, folder: Path = ROOT, **variables: str) -> str:
    """What a program prints in a process of its own."""
    environment = os.environ | variables
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("import zu_lightning.solvers", ("lightning", "peft", "transformers", "sklearn")),
        ("from zu_lightning import unlearn", ("lightning", "peft", "sklearn")),
    ],
)
def test_an_import_loads_no_more_than_it_needs(imported: str, absent: tuple[str, ...]) -> None:
    assert python(f"{imported}\nimport sys\nprint(sorted(sys.modules.keys() & {set(absent)}))") == "[]\n"


def test_unlearn_gives_the_weights_of_fit(tmp_path: Path) -> None:
    folder = run(tmp_path, *SHORT_RUN)
    method = Erase(latents=replace(Erase().latents, steps=5))
    request = Request.draw(
        read_facts(DEMO / "facts.jsonl"), read_texts(str(DEMO / "corpus.txt"), 60), method=method, forget=2, retain=3,
        protect=3, heldout=read_texts(str(DEMO / "heldout.txt"), 3),
    )  # fmt: skip
    lm = EditableLM.from_pretrained(DEMO / "model")
    unlearn(lm, request, method, layers=[0])
    weights = load_file(folder / "model" / "model.safetensors")
    assert equal(weights["model.layers.0.mlp.down_proj.weight"], lm.weight(0))


IN_A_NOTEBOOK = f"""
import zu_lightning
from zu_lightning import EditableLM, Memit, LatentOptions, Request, read_facts, read_texts, unlearn

lm, method = EditableLM.from_pretrained({str(DEMO / "model")!r}), Memit(latents=LatentOptions(contexts=1))
facts = read_facts({str(DEMO / "facts.jsonl")!r})
request = Request.draw(facts, read_texts({str(DEMO / "corpus.txt")!r}, 40), method=method, forget=2, heldout=[])
unlearn(lm, request, method, layers=[0])
fact = request.forget[0]
print(zu_lightning.__file__, lm.generate(fact.prompt, 8).strip().startswith(fact.target), sep="\\n")
"""


def test_the_wheel_works_in_an_empty_folder(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(installed)
    empty.mkdir()
    file, still_known = python(IN_A_NOTEBOOK, empty, PYTHONPATH=str(installed)).splitlines()[-2:]
    assert Path(file).is_relative_to(installed)
    assert still_known == "False"
