"""cerebra_jax: models that are cheap by design. Importing it loads no JAX."""

__version__ = "0.1.0"
