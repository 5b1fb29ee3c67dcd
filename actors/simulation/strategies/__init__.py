"""Strategies: who decides the choices of simulated runs, each a `ChoiceSource` for many schedules in a row."""
