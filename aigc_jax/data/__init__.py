"""Data: text from files to batches. `load(config.data)` is all that the rooms above need."""

from aigc_jax.data.pipeline import Dataset, load, load_validation

__all__ = ['Dataset', 'load', 'load_validation']
