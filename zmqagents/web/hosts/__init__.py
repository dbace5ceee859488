"""The hosts that are shown: asked for what they do, and for what users want of them.

    watcher    asks a host for figures, and knows when it last answered
    live       the live stream of all open pages
    series     the points of the charts
    doors      connections in the name of users
    house      one host, or several: what the rest of ``web`` has of them
    fleet      those of a cluster
    roster     which these are, and connections to them

A part of ``web``, and may import what that may, but for the pages.
"""
