"""`pawl top`: a running server, live in a terminal.

live.py ── asks ──► reading.py (HTTP)          what a server says, and rates between two looks
   │   ── keys ──► keys.py (pure)              a key becomes a new `Ui`, and perhaps something to do
   │   ── draws ─► view.py (pure)              readings and `Ui` become lines
   └── terminal.py                             the one place that touches a terminal
"""
