"""Launchers: each builds the command line that starts the ranks of a job."""
