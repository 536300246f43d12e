"""Data preparation: from files to tokens on disk.

files/     kinds of files -> records          formats/   records -> canonical rows
stages/    the stages before tokenisation     expand/    new rows from a service
verbs/     the commands `cockpit data …`      prepare    a whole profile, from files to tokens
"""
