"""A web page to talk to an agent, over the gateway: python chat_page.py URL TOKEN AGENT [PORT]

The page comes from this program, and so do its answers: the token stays here, and no browser gets it. What the agent
says is passed on piece by piece; a reader who closes the page ends the agent's work.
"""

from __future__ import annotations

import http.client
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

PAGE = """<!doctype html><meta charset="utf-8"><title>Talk</title>
<style>body{font:16px sans-serif;max-width:40em;margin:2em auto} p{white-space:pre-wrap} .me{color:#36c}</style>
<h1>Talk</h1><div id="said" aria-live="polite"></div>
<form><label>You: <input name="text" autofocus autocomplete="off" size="50"></label> <button>Send</button></form>
<script>
const said = document.querySelector("#said"), form = document.querySelector("form");
function line(who) { const p = document.createElement("p"); p.className = who; said.append(p); return p; }
form.onsubmit = async event => {
    event.preventDefault();
    const text = form.text.value;
    form.reset();
    line("me").textContent = text;
    const answer = await fetch("/ask", {method: "POST", body: JSON.stringify({text})});
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader(), p = line("agent");
    for (let piece; !(piece = await reader.read()).done;) p.textContent += piece.value;
};
</script>
"""


class Page(BaseHTTPRequestHandler):
    """Serves the page, and asks the gateway for it."""

    url = token = agent = ""

    def do_GET(self) -> None:
        self._answer(200, "text/html; charset=utf-8")
        self.wfile.write(PAGE.encode())

    def do_POST(self) -> None:
        if self.headers.get("origin") != f"http://{self.headers.get('host')}":
            self.send_error(403)  # another site
            return
        text = json.loads(self.rfile.read(int(self.headers["content-length"])))["text"]
        place = urlsplit(self.url)
        gateway = http.client.HTTPConnection(place.hostname or "", place.port, timeout=300)
        body = {"model": self.agent, "stream": True, "messages": [{"role": "user", "content": text}]}
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        try:
            gateway.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = gateway.getresponse()
            self._answer(answer.status, "text/plain; charset=utf-8")
            for line in answer:
                if line.startswith(b"data: {"):
                    self.wfile.write(_text_of(json.loads(line[6:])).encode())
                    self.wfile.flush()
        finally:
            gateway.close()  # also when the page is closed: then the gateway ends the call

    def _answer(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-security-policy", "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'")
        self.end_headers()


def _text_of(chunk: dict[str, Any]) -> str:
    if "error" in chunk:
        return f"[{chunk['error']['message']}]"
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def main(url: str, token: str, agent: str, port: str = "8000") -> None:
    """Serve the page to this machine."""
    Page.url, Page.token, Page.agent = url.rstrip("/"), token, agent
    with ThreadingHTTPServer(("127.0.0.1", int(port)), Page) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
