"""`python -m blip_nb` is the command `blip_nb`."""
from blip_nb.cli import main

if __name__ == "__main__": raise SystemExit(main())
