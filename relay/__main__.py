"""`relay` and `python -m relay`."""

from relay.cli.root import main

if __name__ == "__main__":
    main()
