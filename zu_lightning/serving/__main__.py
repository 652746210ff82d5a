"""The former way to call the command, kept for one release."""

import sys

from zu_lightning.runtime.errors import InputError
from zu_lightning.serving import main

if __name__ == "__main__":
    sys.stderr.write("`python -m zu_lightning.serving` is now `python train.py serving`; the next release drops it.\n")
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"zu_lightning.serving: error: {error}")
