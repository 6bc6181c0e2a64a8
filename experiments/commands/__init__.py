"""The commands of ``sagax``, a module each."""
