"""``python -m cryoai``."""

from cryoai.cli import main

if __name__ == "__main__":
    main()
