"""The gateway: agents of a host for programs that speak HTTP. Nothing is shown that was not named.

    gateway     the routes of all protocols together, what they share, and its lifetime
    json_api    POST /agents/ID/METHOD, and the OpenAPI that says what there is
    openai_api  /v1/models and /v1/chat/completions: an agent as a model
    mcp_tools   /mcp: each method a tool of the Model Context Protocol
    a2a_agents  /a2a/ID: each agent an agent of the Agent2Agent protocol
    shared      what all protocols share
    chats       an agent that is talked to: which of its methods answer, and with what text
    offers      which agents are shown, and what their methods take
    calls       one call of an agent, for one user, with its end when nobody waits any more
    revival     JSON into the values that a method takes, and back
    failures    errors as status codes
    bodies      requests: path, body, how large they may be, and whether their sender is still there

Needs the extra ``web``; for MCP and A2A also ``mcp`` and ``a2a``. May import what its parent may, but not its
parent's pages. A protocol imports what all share, and of the others no more than how events are written.
"""
