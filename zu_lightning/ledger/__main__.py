"""The former way to call the commands, kept for one release."""

import sys

from zu_lightning.ledger import main
from zu_lightning.runtime.errors import InputError

if __name__ == "__main__":
    sys.stderr.write("`python -m zu_lightning.ledger` is now `python train.py ledger`; the next release drops it.\n")
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"zu_lightning.ledger: error: {error}")
