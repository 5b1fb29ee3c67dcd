"""Pawl: an LLM serving engine you can check."""

__version__ = "0.1.0"
