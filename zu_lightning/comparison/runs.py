"""One run of a comparison: an ordinary ``fit``, and what it leaves in its folder."""

from dataclasses import dataclass
from pathlib import Path

from zu_lightning import digest, replacing

NAMES = ("model", "data", "method", "seed", "strength")
"""What tells one run of a comparison from another."""


@dataclass(frozen=True)
class Run:
    """One method on one model, data set, and seed.

    Attributes:
        model: Name of the model.
        data: Name of the data set.
        method: Name of the method.
        seed: Seed of the draw.
        strength: Value of the method's strength; ``None`` if it has none.
        arguments: Of ``python train.py fit``, except for the folder.
        folder: Where it writes.
    """

    model: str
    data: str
    method: str
    seed: int
    strength: float | None
    arguments: tuple[str, ...]
    folder: Path

    @property
    def command(self) -> list[str]:
        """What to type after ``python train.py`` to run it alone."""
        return ["fit", *self.arguments, f"--trainer.default_root_dir={self.folder}"]

    @property
    def output(self) -> Path:
        """File with what the run prints."""
        return self.folder / "output.txt"

    @property
    def measured(self) -> Path | None:
        """Folder with its results, if it has succeeded with these very arguments."""
        versions = sorted(self.folder.glob("lightning_logs/version_*/metrics.json"), key=lambda p: p.stat().st_mtime)
        return versions[-1].parent if versions and self._ended_with() == "" else None

    @property
    def state(self) -> str:
        """``finished``, ``waiting``, or how it has failed with these very arguments."""
        return "finished" if self.measured else self._ended_with() or "waiting"

    def finish(self, error: str = "") -> None:
        """Remember that the run has succeeded, or how it has failed."""
        with replacing(self.folder / "ended.txt") as temporary:
            temporary.write_text(f"{self._identity()}\n{error}", encoding="utf-8")

    def _ended_with(self) -> str | None:
        """The error, or an empty text after success; ``None`` if it has not ended with these very arguments."""
        marker = self.folder / "ended.txt"
        identity, _, error = marker.read_text(encoding="utf-8").partition("\n") if marker.is_file() else ("", "", "")
        return error if identity == self._identity() else None

    def _identity(self) -> str:
        """A digest of the arguments and of the configurations that they name."""
        configs = [name.removeprefix("--config=") for name in self.arguments if name.startswith("--config=")]
        return digest(*self.arguments, *(Path(config).read_bytes() for config in configs))
