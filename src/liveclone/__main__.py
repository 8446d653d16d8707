"""`python -m liveclone` is the command `liveclone`."""

from .cli.main import main

if __name__ == "__main__":
    main()
