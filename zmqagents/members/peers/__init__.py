"""Peers: the other hosts of the cluster that this host is a member of.

The home of an agent keeps its mailbox and its turn; every other host passes calls on to it, bodies unread.

    room        all of it, as the host's members know it     way         calls whose agent is sought, or elsewhere
    resident    an agent of the cluster that lives here      neighbour   the connection to another member
    tenant      the same in a process of this host           drain       gives agents away before the host ends
    quarters    what the others have of the room             inquiries   what clients ask of a cluster
    keeper      takes the states of agents that live here    ticks       hands out reminders that are due
    watch       what is looked at now and then

May import what ``members`` may, and cluster and store. A host without a cluster imports none of it.
"""
