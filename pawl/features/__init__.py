"""All that a server or a request can be told, as rows: what a feature is, how it is drawn, who judges it.

`server.FEATURES` are those of the configuration, `request.FEATURES` those of a request. The configuration takes choices
and help from here; simulated runs take what they serve. A new choice is a line in the table of its makers
(`loops/policy.py`, `memory/prefix/order.py`, …), a new feature a row here; `tests/pawl/test_features.py` fails for one
that is declared and never drawn.
"""
