"""An agent with a language model: here a local fake one, which speaks the protocol of chat completions."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient


class FakeModel(BaseHTTPRequestHandler):
    """Answers every chat with the last words, turned round."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = " ".join(reversed(asked["messages"][-1]["content"].split()))
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": [choice]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


@contextmanager
def fake_model() -> Iterator[str]:
    """The address of a model that runs meanwhile."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeModel) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()


class Assistant(AgentBase):
    """Remembers the conversation, and asks the model that the host knows as ``local``."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[dict[str, str]] = []

    def reply(self, text: str) -> str:
        """The answer of the model."""
        self.messages.append({"role": "user", "content": text})
        said = str(self.model("local")(self.messages))
        self.messages.append({"role": "assistant", "content": said})
        return said


if __name__ == "__main__":
    with fake_model() as address, RpcAgentServerLauncher(custom_agent_classes=[Assistant]) as server:
        config = {"config_name": "local", "model_type": "openai_chat", "model_name": "fake", "api_key": "none",
                  "client_args": {"base_url": address}}  # fmt: skip
        with RpcClient(server.host, server.port) as client:
            client.set_model_configs(config)
            assistant = client.create_agent(Assistant)
            print(assistant("how are you").result(timeout=60))
            print("messages:", len(assistant.messages))
