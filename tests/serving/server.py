"""An OpenAI-compatible server on the loopback interface."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

Model = Callable[[str, int], object]
"""What a model says after a prompt, in at most so many tokens; a server that is not one may say anything."""


@contextmanager
def served(models: Mapping[str, Model], key: str | None = None) -> Iterator[str]:
    """A server of some models, by name, that may want a key; its URL."""
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {"data": [{"id": name} for name in models]}
            self.reply(200, found) if self.path == "/v1/models" else self.reply(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = asked["model"]
            if key is not None and self.headers.get("Authorization") != f"Bearer {key}":
                return self.reply(401, {"error": "Unauthorized"})
            if self.path not in ("/v1/completions", "/v1/chat/completions"):
                return self.reply(404, {"detail": "Not Found"})
            if name not in models:
                return self.reply(404, {"error": {"message": f"The model `{name}` does not exist."}})
            chat = self.path == "/v1/chat/completions"
            prompt = f"chat: {asked['messages'][-1]['content']}" if chat else asked["prompt"]
            with lock:
                text = models[name](prompt, asked["max_tokens"])
            return self.reply(200, {"choices": [{"message": {"content": text}} if chat else {"text": text}]})

        def reply(self, status: int, content: object) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
