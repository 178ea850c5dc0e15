"""From the words of a command line to a checked config; nothing here imports torch before a run is wanted."""
