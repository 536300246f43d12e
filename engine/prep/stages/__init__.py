"""The stages between files and tokens. Each reads and writes files of placed rows (`row_files`); `pipeline` runs them
in order."""
