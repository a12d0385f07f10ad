"""`python -m nertool` is the `nertool` command."""

from nertool.cli import main

if __name__ == "__main__":
    main()
