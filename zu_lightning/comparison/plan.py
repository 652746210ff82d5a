"""Plan of a comparison: every method on every model, data set, and seed, read from a YAML file."""

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from zu_lightning import InputError
from zu_lightning.comparison.runs import Run

REQUIRED = {"models", "data", "methods", "seeds"}
OPTIONAL = {"like", "tuning_seeds", "first", "options", "headline", "protocol"}
Headline = Literal["exact_match", "token_accuracy"]
Strengths = dict[tuple[str, str, str], float]
"""The strength of a method by model, data set, and method."""


@dataclass(frozen=True)
class Part:
    """A choice of model, data set, or method: configurations, and options on top of them.

    Attributes:
        configs: Paths of YAML files for ``train.py``.
        options: Options for ``train.py``, by name.
        strength: For a method, the option that sets how strongly it forgets; ``None`` if it has none.
        strengths: The values to choose from.
        by_model: For a method, more options for some models, by the model's name; the layers to edit, for example.
    """

    configs: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    strength: str | None = None
    strengths: tuple[float, ...] = ()
    by_model: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Any, where: str) -> "Part":
        """A part as the YAML gives it: a path, a list of paths, or a mapping from this class's attributes.

        Raises:
            InputError: It is something else, or a configuration does not exist.
        """
        content: dict[str, Any] = given if isinstance(given, dict) else {"configs": given}
        if not content.keys() <= {attribute.name for attribute in dataclasses.fields(cls)}:
            remedy = "give a path, a list of paths, or a mapping with configs, options, strength, strengths, by_model."
            raise InputError(where, given, remedy)
        content = {name: value for name, value in content.items() if value is not None}
        if ("strength" in content) != bool(content.get("strengths")):
            raise InputError(where, given, "give both strength, an option, and strengths, its values.")
        content["configs"] = _names(content.get("configs"))
        for config in content["configs"]:
            if not Path(config).is_file():
                raise InputError(f"{where}.configs", config, "there is no such file: correct the path.")
        try:
            content["strengths"] = tuple(map(float, content.get("strengths", ())))
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}.strengths", content["strengths"], "give a list of numbers.") from error
        return cls(**content)


@dataclass(frozen=True)
class Comparison:
    """Everything that the YAML of a comparison says.

    Attributes:
        models: By name.
        data: By name.
        methods: By name.
        seeds: Seeds of the draws that are reported.
        tuning_seeds: Seeds of the draws on which strengths are chosen; they are not reported.
        options: Options of all runs.
        headline: For each data set, which scores count: exact match, or token accuracy.
        protocol: Which published tables to show beside ours, ``few`` or ``many``; ``None`` for none.
        first: Methods that run first, such as one for each set of layers that is edited: the others find in the cache
            what these have computed.
        folder: Where runs and tables are written.
    """

    models: dict[str, Part]
    data: dict[str, Part]
    methods: dict[str, Part]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    options: dict[str, Any]
    headline: dict[str, Headline]
    protocol: str | None
    first: tuple[str, ...]
    folder: Path

    @classmethod
    def read(cls, path: Path, folder: Path, options: Mapping[str, Any] | None = None) -> "Comparison":
        """Read the plan of a comparison.

        Args:
            path: YAML with this class's attributes; ``models``, ``data``, and ``methods`` map names to what
                :meth:`Part.of` takes, and ``seeds`` is a list. The others may be left out. ``like`` names another such
                file, whose fields are taken where this one has none.
            folder: Where its runs write.
            options: Options of all runs, in addition to those of the YAML.

        Raises:
            InputError: A field is missing, unknown, or malformed, or a configuration does not exist.
        """
        content = _read_yaml(path)
        models, data, methods = (_parts(content, kind) for kind in ("models", "data", "methods"))
        return cls(
            models=models, data=data, methods=methods, seeds=_seeds(content, "seeds"),
            tuning_seeds=_seeds(content, "tuning_seeds"), options={**_mapping(content, "options"), **(options or {})},
            headline={**dict.fromkeys(data, "exact_match"), **_mapping(content, "headline")},
            protocol=content.get("protocol"), first=_names(content.get("first")), folder=folder,
        )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse names and seeds that do not fit together."""
        if both := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise InputError("tuning_seeds", both, "these seeds are reported, too: choose strengths on others.")
        for name, method in self.methods.items():
            if method.strengths and not self.tuning_seeds:
                raise InputError(f"methods.{name}.strengths", method.strengths, "add tuning_seeds to choose one on.")
            _check_known(f"methods.{name}.by_model", method.by_model, self.models)
        _check_known("headline", self.headline, self.data)
        _check_known("headline", self.headline.values(), ("exact_match", "token_accuracy"))
        _check_known("protocol", _names(self.protocol), ("few", "many"))
        _check_known("first", self.first, self.methods)

    def tuning_runs(self) -> list[Run]:
        """Every strength of every method on the draws used to choose strengths."""
        return [
            self._run(model, data, method, seed, strength, self.folder / "tuning")
            for model, data, seed, method in itertools.product(self.models, self.data, self.tuning_seeds, self.methods)
            for strength in self.methods[method].strengths
        ]

    def runs(self, chosen: Strengths) -> list[Run]:
        """The runs that are reported, all methods of a draw one after the other, since they share most.

        Args:
            chosen: The strengths; a method that is left out runs as it is.
        """
        cells = itertools.product(self.models, self.data, self.seeds, self.methods)
        return [self._run(m, d, method, seed, chosen.get((m, d, method)), self.folder) for m, d, seed, method in cells]

    def waves(self, runs: Sequence[Run]) -> list[list[Run]]:
        """Runs in an order in which hardly anything is computed twice: a wave begins when the one before has ended.

        The first methods on one draw of each model, which leave the sums over the retain text; then the same methods
        on the other draws, which leave what belongs to a draw; then everything else.
        """
        waves: list[list[Run]] = [[], [], []]
        models, draws = set[tuple[str, str]](), set[tuple[str, str, str, int]]()
        for run in runs:
            model, draw = (run.method, run.model), (run.method, run.model, run.data, run.seed)
            number = 2
            if run.method in self.first and draw not in draws:
                number = 1 if model in models else 0
                models.add(model)
                draws.add(draw)
            waves[number].append(run)
        return [wave for wave in waves if wave]

    def _run(self, model: str, data: str, method: str, seed: int, strength: float | None, root: Path) -> Run:
        parts = (self.models[model], self.data[data], self.methods[method])
        options: dict[str, Any] = {
            # A comparison is of scores: it exports no models, unless its options say so.
            "trainer.callbacks": [{"class_path": "callbacks.Report"}],
            "trainer.enable_progress_bar": False,
            "data.cache": str(self.folder / "cache"),
        }
        for chosen in (*(part.options for part in parts), parts[2].by_model.get(model, {}), self.options):
            options |= chosen
        options |= {"data.seed": seed} | ({} if strength is None else {str(parts[2].strength): strength})
        configs = (f"--config={config}" for part in parts for config in part.configs)
        arguments = (*configs, *(f"--{name}={_dumped(value)}" for name, value in options.items()))
        folder = root.joinpath(*map(_folder_name, (model, data, method, str(seed))))
        if root != self.folder:
            folder /= f"{strength:g}"
        return Run(model, data, method, seed, strength, arguments, folder)


def _read_yaml(path: Path) -> dict[str, Any]:
    """The fields of a comparison, with those that it takes from another one."""
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError("config", str(path), f"it cannot be read ({error}): name a YAML file.") from error
    if not isinstance(content, dict):
        raise InputError("config", str(path), "it holds no mapping: give models, data, methods, and seeds.")
    if "like" in content:
        if not Path(str(content["like"])).is_file() or Path(content["like"]).samefile(path):
            raise InputError("like", content["like"], "give the path of another comparison.")
        content = _read_yaml(Path(content["like"])) | content
    differences = {"does not know": content.keys() - REQUIRED - OPTIONAL, "lacks": REQUIRED - content.keys()}
    if wrong := " and ".join(f"{kind} {', '.join(sorted(names))}" for kind, names in differences.items() if names):
        remedy = f"a comparison has models, data, methods, and seeds; this one {wrong}: correct its fields."
        raise InputError("config", str(path), remedy)
    return content


def _mapping(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    given: dict[str, Any] = content.get(name) or {}
    if not isinstance(given, dict):
        raise InputError(name, given, "give a mapping.")
    return given


def _parts(content: Mapping[str, Any], kind: str) -> dict[str, Part]:
    parts = {str(name): Part.of(given, f"{kind}.{name}") for name, given in _mapping(content, kind).items()}
    folders = [*map(_folder_name, parts)]
    for name in parts:
        if "/" in name or folders.count(_folder_name(name)) > 1 or name in ("tuning", "cache", "jobs"):
            raise InputError(kind, name, "a folder is named after it: choose another name, without a slash.")
    return parts


def _names(given: Any) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def _seeds(content: Mapping[str, Any], name: str) -> tuple[int, ...]:
    seeds = content.get(name) or []
    is_list = isinstance(seeds, list) and all(isinstance(seed, int) for seed in seeds)
    if not is_list or (name == "seeds" and not seeds):
        raise InputError(name, seeds, "give a list of whole numbers.")
    return tuple(seeds)


def _check_known(parameter: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(parameter, name, f"there are only {', '.join(known)}: correct the name.")


def _folder_name(name: str) -> str:
    return name.replace(" ", "_")


def _dumped(value: Any) -> str:
    """A value as the command line takes it: texts as they are, anything else as YAML in one line."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
