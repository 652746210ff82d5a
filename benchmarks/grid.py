"""The comparison of methods by its old name; it goes with the next release."""

import logging
import sys

import train

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.warning(
        "python -m benchmarks.grid is now python train.py compare; the old name goes with the next release."
    )
    train.main(["compare", *sys.argv[1:]])
