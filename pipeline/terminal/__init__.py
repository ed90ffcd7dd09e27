"""The command line: its verbs, their options, the progress display and the reports."""
