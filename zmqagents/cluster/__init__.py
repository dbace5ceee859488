"""A cluster: hosts that act as one. Redis agrees and stores, and this package is what a host and a client add to it.

All modules but the last two are pure: they get the time and what has come, and say what is to be done.

    naming       names of agents and of proxies            cache        where agents were last seen
    protocol     what clients ask of hosts, and hosts of each other
    lease        how long this host may start calls        observers    which other members may be declared dead
    placement    which member a new agent goes to          activations  the agents that this host runs, and their saves
    reminders    those of an agent, and who looks after them
    steward      the threads between the router and Redis  member       all of it, as the broker knows it

May import store, config, checks and errors.
"""
