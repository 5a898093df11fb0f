"""The pure core: decides, and neither waits nor sends nor touches a tensor.

Each part takes an event and returns decisions, each with its reason. Shells
(servers over RPC, the in-process job, the simulator) carry them out.
"""
