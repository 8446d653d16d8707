"""The command line: one file for each group of verbs; parsing and rendering, and nothing else."""
