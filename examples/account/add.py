"""``python add.py 500``: put cents into Ann's account, by whichever host can be reached."""

import sys

from zmqagents import Cluster

with Cluster("localhost:12011, localhost:12012, localhost:12013") as cluster:
    print(cluster.get_agent("ann", cls="Account").add(int(sys.argv[1])))
