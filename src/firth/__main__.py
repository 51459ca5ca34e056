"""``python -m firth``: the command line without the script."""

from firth.cli import main

if __name__ == "__main__":
    main()
