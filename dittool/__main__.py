"""`python -m dittool …` is `dit …`; torchrun starts training this way."""

from dittool.cli import main

if __name__ == "__main__":
    main()
