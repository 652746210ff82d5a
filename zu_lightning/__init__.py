"""zu-lightning: make a language model forget, exactly and measurably (ZeroUnlearn, arXiv 2605.18879).

The public names stand in ``__init__.pyi``; each is imported from its module when it is first used, so that
``import zu_lightning.solvers`` loads torch alone.
"""

import lazy_loader

from zu_lightning import renamed_modules as renamed_modules

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
