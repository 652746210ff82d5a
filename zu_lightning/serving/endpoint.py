"""A model behind an OpenAI-compatible URL: what it goes on with after a prompt."""

import json
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from zu_lightning.facts.fact import Query
from zu_lightning.runtime.errors import InputError

MESSAGE_LENGTH = 300
"""Number of characters of a server's message that are told."""


@dataclass(frozen=True)
class Endpoint:
    """A model of a server.

    Attributes:
        url: Where the server's API begins, such as ``http://127.0.0.1:8000/v1``.
        model: What the server calls the model.
        key: API key; ``None`` for a server that wants none.
        timeout: Seconds after which a server that says nothing counts as absent.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0

    def answer(self, query: Query) -> str:
        """What the model says after a prompt, greedily, for as long as the true answer may be.

        Raises:
            InputError: There is no such server or model, or what answers is none.
        """
        # A token holds a byte of text or more; some tokenizers also give the space before the answer one of its own.
        asked: dict[str, Any] = {"model": self.model, "max_tokens": len(query.target.encode()) + 2, "temperature": 0}
        # vLLM takes defaults from the model's generation_config.json: a penalty there would change greedy answers.
        asked["repetition_penalty"] = 1.0
        asked |= {"messages": [{"role": "user", "content": query.prompt}]} if query.chat else {"prompt": query.prompt}
        path = "chat/completions" if query.chat else "completions"
        try:
            content = self._ask(path, asked)
        except HTTPError as error:
            raise self._refusal(path, error) from error
        try:
            choice = content["choices"][0]
            text = choice["message"]["content"] if query.chat else choice["text"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            remedy = f"its answer to {path} holds no text ({_shortened(json.dumps(content))}): it is not an " + (
                "OpenAI-compatible API of a language model. Correct the address, which usually ends in /v1."
            )
            raise InputError("url", self.url, remedy)
        return text

    def models(self) -> list[str]:
        """Names of the models that the server lists; empty if it lists none.

        Raises:
            InputError: There is no server.
        """
        try:
            return [str(model["id"]) for model in self._ask("models")["data"]]
        except (HTTPError, KeyError, TypeError):
            return []

    def _ask(self, path: str, asked: dict[str, Any] | None = None) -> Any:
        """What the server says; an HTTPError if it refuses."""
        try:
            return self._open(path, asked)
        except HTTPError:
            raise
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            remedy = f"no server answers there ({reason}): start it, or correct the address."
            raise InputError("url", self.url, remedy) from error
        except ValueError as error:  # what urllib cannot read as an address, and what is not JSON
            remedy = f"no OpenAI-compatible server answers there ({error}): give an address such as " + (
                "http://127.0.0.1:8000/v1."
            )
            raise InputError("url", self.url, remedy) from error

    def _open(self, path: str, asked: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        body = None if asked is None else json.dumps(asked).encode()
        request = Request(f"{self.url.rstrip('/')}/{path}", body, headers)
        with urlopen(request, timeout=self.timeout) as response:
            return json.load(response)

    def _refusal(self, path: str, error: HTTPError) -> InputError:
        message = f"{error.code}, {_shortened(error.read().decode(errors='replace'))}"
        if error.code in (401, 403):
            remedy = f"the server wants another key ({message}): name an environment variable that holds it."
            return InputError("api_key_variable", None if self.key is None else "***", remedy)
        known = self.models()
        if known and self.model not in known:
            return InputError(
                "model", self.model, f"the server refuses it ({message}). It serves {', '.join(known)}: name one of "
                "these, or for SGLang BASE:ADAPTER.",
            )  # fmt: skip
        return InputError("url", self.url, f"the server refuses to answer {path} ({message}).")


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= MESSAGE_LENGTH else f"{words[:MESSAGE_LENGTH]}..."
