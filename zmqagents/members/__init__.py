"""Members: hosts on which this host runs agents of its own. A child is one in a process that this host has started.

The host keeps mailbox, turn, deadline and waits of such an agent, and a member runs its methods:

    directory    which member runs which agent          placement    which member a new agent goes to
    line         the connection to a member             forwarder    calls that run on a member, and their ends
    nursery      the processes of children              child        one child: its process, its agents, its crashes
    members      all of it, as the broker knows it      answers      what all of them say to one question
    upward       a child's way to its host              board        which waits of a child go on

May import execution, scheduler, connection, wire, process, codec, agents, models, config and errors.
"""
