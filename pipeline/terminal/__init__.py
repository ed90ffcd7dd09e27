"""The command line: verbs, options, progress display and reports."""
