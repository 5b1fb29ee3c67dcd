"""Adapters for schedulers that other people write. Each imports its peer, and is imported only when it is named."""
