"""One option chooses a method, from the package or from somebody's own file, with its own options below it."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import SHORT_RUN, command_line, run, train_py
from zu_lightning import Results

OWN_METHODS = '''
from dataclasses import dataclass

import torch
from zu_lightning import EditingMethod, GradientMethod, LowRankUpdate


@dataclass(frozen=True, kw_only=True)
class LeastSquares(EditingMethod):
    """A closed form in ten lines: the smallest update that goes a share of the way to every target."""

    share: float = 1.0

    def update(self, weight, problem):
        return LowRankUpdate(self.share * problem.residuals, torch.linalg.pinv(problem.keys))


@dataclass(frozen=True, kw_only=True)
class Uniform(GradientMethod):
    """A gradient method in ten lines: answers as likely as any other token."""

    def forget(self, views):
        from zu_lightning.gradient.method import Mean

        log_probability = views.answers("forget").log_probability
        return Mean(-log_probability.mean(1).sum(), len(log_probability))
'''
OPTIONS = tuple(option for option in SHORT_RUN if "method" not in option)


@pytest.fixture(autouse=True)
def own_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods.py").write_text(OWN_METHODS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--method=Memit", "--method.retain_weight=0.1"), {"name": "Memit", "retain_weight": 0.1}),
        (("--method=NPO", "--method.beta=0.2", "--method.training.epochs=2"), {"name": "NPO", "beta": 0.2}),
        (("--method=my_methods.LeastSquares", "--method.share=0.5"), {"name": "LeastSquares", "share": 0.5}),
        (("--method=my_methods.Uniform", "--method.training.epochs=3"), {"name": "Uniform"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_method_is_chosen_by_one_option(
    options: tuple[str, ...], expected: dict[str, object], tmp_path: Path
) -> None:
    results = Results.read(run(tmp_path, *OPTIONS, *options))
    assert expected.items() <= results.method.items()
    assert results.after["efficacy_probability"] < results.before["efficacy_probability"]
    if expected["name"] == "LeastSquares":
        before, after = (getattr(results.layers[0], f"residual_{when}") for when in ("before", "after"))
        assert torch.isclose(torch.tensor(after), torch.tensor(0.5 * before))


@pytest.mark.parametrize(
    ("option", "weights"),
    [("--method=Memit", (0.7, 0.3)), ("--method.protect_num=7", (0.7, 0.3)), ("--method=ZeroUnlearnSoft", (0.5, 0.1))],
)
def test_only_another_method_starts_from_its_own_defaults(
    option: str, weights: tuple[float, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("method: {class_path: Memit, init_args: {retain_weight: 0.7, protect_weight: 0.3}}")
    with pytest.raises(SystemExit):
        train_py(command_line(tmp_path, f"--config={mine}", option, "--print_config"))
    method = yaml.safe_load(capsys.readouterr().out)["method"]["init_args"]
    assert (method["retain_weight"], method["protect_weight"]) == weights
