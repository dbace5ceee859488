"""An account that a cluster keeps: its balance survives the death of the host that has it."""

from zmqagents import AgentBase, idempotent


class Account(AgentBase):
    """Adds up cents. Its state is in Redis before a caller has its answer: the default for a class with save_state."""

    def __init__(self) -> None:
        self.cents = 0

    def save_state(self) -> dict[str, int]:
        return {"cents": self.cents}

    def load_state(self, state: dict[str, int]) -> None:
        self.cents = state["cents"]

    def add(self, cents: int) -> int:
        """Take them in, or out if they are below 0; the new balance."""
        self.cents += cents
        return self.cents

    @idempotent
    def balance(self) -> int:
        """What there is. A call that is lost with its host is made again by itself, for that does no harm."""
        return self.cents
