"""A graph of langgraph as an agent: as_server start --agent g=examples_graph:graph --app-dir examples"""

from __future__ import annotations

from typing import Any


def graph() -> Any:
    """Answers every message louder."""
    from langchain_core.messages import AIMessage
    from langgraph.graph import START, MessagesState, StateGraph

    def shout(state: MessagesState) -> dict[str, Any]:
        said = [message.text for message in state["messages"] if message.type == "human"]
        return {"messages": [AIMessage(f"{said[-1].upper()}! ({len(said)})")]}

    builder = StateGraph(MessagesState)
    builder.add_node("shout", shout)
    builder.add_edge(START, "shout")
    return builder.compile(name="louder")
