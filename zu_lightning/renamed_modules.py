"""Modules that had another name in the previous release; this file goes with the next one."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

PACKAGES = {"analysis": "tracing", "methods": "editing", "metrics": "evaluation", "problem": "editing"}
"""Old packages; a module that is not in the table below has kept its name in the new one."""
MODULES = {
    "errors": "runtime.errors",
    "files": "runtime.files",
    "timing": "runtime.timing",
    "distributed": "runtime.distributed",
    "problem.cache": "runtime.cache",
    "problem.earlier": "editing.previous",
    "problem.phrasings": "editing.prompts",
    "problem.prepare": "editing.preparation",
    "methods.losses": "gradient.method",
    "methods.rounds": "editing.reweighting",
    "methods.rules": "editing.closed_forms",
    "methods.unlearning": "editing.editor",
    "modules.earlier": "modules.previous",
    "modules.trained": "gradient.weights",
    "analysis.bands": "evaluation.bootstrap",
    "analysis.corruption": "tracing.traced_prompts",
    "analysis.effects": "tracing.indirect_effects",
    "analysis.restoring": "tracing.indirect_effects",
    "analysis.roles": "tracing.traced_prompts",
    "analysis.tracing": "tracing.layer_trace",
    "facts.request": "editing.request",
    "facts.strangers": "facts.unknown_subjects",
    "lm.edits": "lm.updates",
    "lm.recognize": "lm.fingerprint",
    "lm.tiny": "lm.random_tiny",
    "evaluation.by_fact": "evaluation.intervals",
    "evaluation.downstream": "evaluation.ability",
    "evaluation.evaluate": "evaluation.scores",
    "attacks.asking": "attacks.answers",
    "attacks.exam": "attacks.context",
    "attacks.suite": "attacks.presets",
    "ledger.containment": "ledger.identification",
    "ledger.remains": "ledger.artifacts",
    "ledger.kept": "ledger.files",
    "ledger.undoing": "ledger.reverting",
    "report.downstream": "report.ability",
    "report.downstream_plots": "report.ability",
    "metrics.answers": "evaluation.metrics",
    "metrics.perplexity": "evaluation.metrics",
}
"""Old and new names, within ``zu_lightning``."""
CALLBACKS = {f"callbacks.{name}": "callbacks.measure" for name in ("attacks", "downstream", "representations")}
"""Old and new modules outside it."""
NAMES = {"Loss": "GradientMethod", "Rule": "EditingMethod", "own_share": "rank_shard"}
"""Old and new public names of ``zu_lightning``."""


def new_name(name: str) -> str | None:
    """The present name of a module of the previous release; ``None`` if it has kept its name, or never was one."""
    root, _, rest = name.partition(".")
    if root != "zu_lightning":
        return CALLBACKS.get(name)
    package, _, module = rest.partition(".")
    if rest in MODULES:
        return f"{root}.{MODULES[rest]}"
    return f"{root}.{PACKAGES[package]}" + (f".{module}" if module else "") if package in PACKAGES else None


class RenamedModules(MetaPathFinder, Loader):
    """Imports a module by its old name, with a warning that says the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find only what was renamed; asked first, since an old package has the modules of the new one in its path."""
        return spec_from_loader(fullname, self, is_package=True) if new_name(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name in the place of the old one."""
        new = new_name(module.__name__)
        assert new is not None
        _warn(module.__name__, new)
        sys.modules[module.__name__] = importlib.import_module(new)


def present_name(name: str) -> str:
    """The present one of a public name of ``zu_lightning``."""
    if name in NAMES:
        _warn(f"zu_lightning.{name}", f"zu_lightning.{NAMES[name]}")
    return NAMES.get(name, name)


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name goes with the next release.", FutureWarning, 3)


sys.meta_path.insert(0, RenamedModules())
