"""zu-lightning: make a language model forget, exactly and measurably (ZeroUnlearn, arXiv 2605.18879).

The public names stand in ``__init__.pyi``; each is imported from its module when it is first used, so that
``import zu_lightning.solvers`` loads torch alone.
"""

from typing import Any

import lazy_loader

from zu_lightning import renamed_modules as renamed_modules

__version__ = "0.1.0"

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    return _attribute(renamed_modules.present_name(name))
