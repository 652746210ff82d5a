"""The command line: options, errors in one line, and how runs end."""
