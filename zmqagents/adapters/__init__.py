"""Agents of other frameworks as agents of a host: one module for each framework, which is imported with the first such
object and not before.

May import what stands below, of which it uses agents, client, codec and errors. A module imports its own framework, and
no other module does.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["adapt"]

# The package and the class of what a factory gives; the module here and the class in it that hosts such an object. The
# first that fits: a graph of langgraph is a runnable of langchain, too.
ADAPTERS = (
    ("langgraph", "Pregel", "langgraph", "GraphAgent"),
    ("langchain_core", "Runnable", "langchain", "RunnableAgent"),
    ("pydantic_ai", "AbstractAgent", "pydantic_ai", "PydanticAgent"),
    ("agents.agent", "Agent", "openai_agents", "OpenAIAgent"),
    ("agentscope.agent", "Agent", "agentscope", "ScopeAgent"),
    ("autogen_agentchat", "ChatAgent", "autogen", "AutogenAgent"),
    ("autogen_agentchat", "Team", "autogen", "AutogenAgent"),
    ("google.adk", "BaseAgent", "google_adk", "AdkAgent"),
    ("google.adk", "Runner", "google_adk", "AdkAgent"),
    ("workflows", "Workflow", "llama_index", "LlamaAgent"),
    ("smolagents", "MultiStepAgent", "smolagents", "SmolAgent"),
    ("crewai", "Crew", "crewai", "CrewAgent"),
    ("crewai", "BaseAgent", "crewai", "CrewAgent"),
)  # fmt: skip


def adapt(made: Any) -> Any:
    """What is hosted for an object that a factory has given: an adapter, or the object itself if it needs none."""
    names = [(cls.__module__, cls.__name__) for cls in type(made).__mro__]
    for package, class_name, module, adapter in ADAPTERS:
        if any(name == class_name and f"{place}.".startswith(f"{package}.") for place, name in names):
            return getattr(importlib.import_module(f".{module}", __name__), adapter)(made)
    return made
