"""Plans as people and programs see them, kept as files; `python -m tests.golden --write` makes them anew."""
