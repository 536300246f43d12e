"""Data preparation: from files to tokens on disk.

    files/     kinds of files -> records
    formats/   records -> canonical rows
    stages/    canonical rows -> cleaned, deduplicated, split and balanced rows
    expand/    new rows from a service
    verbs/     the commands `cockpit data …` and `cockpit tokenizer …`

`prepare` runs all of it for a profile; `tokenize_files` and `token_store` write the tokens; `browse` shows the rows.
"""
