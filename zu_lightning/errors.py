"""The one kind of error that a user causes and can mend."""


class InputError(ValueError):
    """Bad input: the message names the field, the value and the remedy. `train.py` prints it without a traceback."""
