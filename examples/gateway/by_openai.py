"""A client of OpenAI's chat completions at the gateway: python by_openai.py URL TOKEN MODEL TEXT"""

from __future__ import annotations

import sys

from openai import OpenAI


def main(url: str, token: str, model: str, text: str) -> None:
    """Ask an agent, whose answer comes piece by piece."""
    with OpenAI(base_url=f"{url}/v1", api_key=token) as client:
        print("models:", *(each.id for each in client.models.list()))
        for chunk in client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], stream=True
        ):
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
