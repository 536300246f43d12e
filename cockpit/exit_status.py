"""Exit statuses of the command line."""

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
"""The job is done; the job failed; the request was wrong; ctrl+c."""
