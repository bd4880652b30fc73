"""`python -m fedsdr` is the `fedsdr` command."""

from fedsdr.cli.main import main

if __name__ == "__main__":
    main()
