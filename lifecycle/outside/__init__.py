"""Schedulers that are not ours, as they are seen from outside: records of what they do, and what judges these."""
