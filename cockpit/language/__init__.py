"""The language of the app and of the command line: English in the sources, others from gettext catalogues."""
