"""Makes `python -m cerebra_jax` the same as the console script `cerebra`."""

import sys

from cerebra_jax import signals

if __name__ == "__main__":
    signals.until_main()
    from cerebra_jax.main import main

    sys.exit(main())
