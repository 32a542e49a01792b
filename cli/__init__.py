"""The `kuznia` command: one command a file.

A file `cli/<name>.py` with a click command called `command` at its top level is the command
`kuznia <name>`; the first line of the file's docstring is its line in `kuznia --help`. Files
without one are helpers. Anything slow to import (pydantic, yaml, rich, obstore, mlflow) is
imported inside functions, so that help answers at once.
"""
