"""Graphs that the passes build of other graphs: local ones are cut out of a step, and glued together again."""
