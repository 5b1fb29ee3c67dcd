"""Weights that a trainer broadcasts over torch.distributed.

A process of its own is the member of the trainer's group, one for each group (`child`). It can be killed, which is the
only way out of a collective that hangs, and it dies alone where the library ends its process: gloo does that when more
bytes come than were expected. What it receives lies in memory that it shares with the engine.
"""
