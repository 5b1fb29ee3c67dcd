"""Constrained decoding: grammars, the matchers that follow an output through them, and the masks these give."""
