"""`python -m strandline` is the command `strandline`."""

from strandline.cli.main import main

if __name__ == "__main__":
    main()
