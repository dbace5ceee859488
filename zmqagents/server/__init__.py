"""A host's life, from outside (launcher, supervisor, stop) and inside (the process that serves).

May import everything but cli. Importing it is a ConfigError on a system that cannot run a host.
"""

from ..discovery import check_system

check_system()
