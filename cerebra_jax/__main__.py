"""Makes `python -m cerebra_jax` the same as the console script `cerebra`."""

import sys

from cerebra_jax.main import main

if __name__ == "__main__":
    sys.exit(main())
