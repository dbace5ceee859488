"""``python -m zmqagents``: the same as the command ``as_server``."""

from .cli import main

if __name__ == "__main__":
    main()
