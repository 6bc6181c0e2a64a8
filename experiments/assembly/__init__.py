"""From a name to the objects of a run: registry, factories, ranges, checks, members."""
