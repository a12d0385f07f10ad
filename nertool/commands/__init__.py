"""The commands: in each module a thin Typer function beside a plain one that does the work."""
