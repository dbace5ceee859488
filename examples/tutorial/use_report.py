"""Makes two agents on the host that runs here, and gives one to the other."""

from report import Report
from words import Words

from zmqagents import RpcClient

with RpcClient() as client:
    words = client.create_agent(Words, least=4)
    words.read("a router routes, a dealer deals")
    print(client.create_agent(Report).write(words))
