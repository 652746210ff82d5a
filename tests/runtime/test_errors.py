"""The one kind of error that a user causes and can correct."""

import pickle

import pytest

from zu_lightning import InputError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("forget_num", 12, "ask for fewer."), "forget_num is 12: ask for fewer."),
        (InputError("path", "a.txt", "check the name."), "path is 'a.txt': check the name."),
        (InputError("corpus", None, "add retain text."), "corpus is missing: add retain text."),
        (InputError("seed", 0, "remedy."), "seed is 0: remedy."),
        (InputError("target", 7, "give a text.", "a.jsonl, line 2"), "a.jsonl, line 2: target is 7: give a text."),
    ],
)
def test_a_message_says_where_what_and_what_to_do(error: InputError, message: str) -> None:
    assert str(error) == message


def test_what_is_at_fault_can_be_called_by_another_name() -> None:
    error = InputError("forget_num", 12, "ask for fewer.", "here")
    assert error.message("--data.forget_num") == "here: --data.forget_num is 12: ask for fewer."
    assert str(error) == "here: forget_num is 12: ask for fewer."


def test_a_long_value_is_cut() -> None:
    message = str(InputError("JSON", "x" * 10_000, "correct it."))
    assert len(message) < 150
    assert message.endswith("xx: correct it.")


def test_it_is_a_value_error_with_parts_that_can_be_read() -> None:
    with pytest.raises(ValueError, match="remedy") as caught:
        raise InputError("parameter", [1], "remedy", "where")
    assert isinstance(caught.value, InputError)
    assert vars(caught.value) == {"parameter": "parameter", "value": [1], "remedy": "remedy", "where": "where"}


def test_it_passes_from_process_to_process() -> None:
    error = InputError("layers", [0, 9], "layers [9] do not exist.", "here")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, InputError)
    assert vars(again) == vars(error)
    assert str(again) == str(error)
