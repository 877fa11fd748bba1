"""`python -m compressae_index` is the command line."""

from __future__ import annotations

from compressae_index.cli import main

if __name__ == "__main__":
    main()
