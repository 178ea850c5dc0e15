"""Sweeps: many runs, each a directory that any process may go on with, from one command to one report."""
