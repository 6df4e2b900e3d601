"""Text from models: `generate_text` for strings, `decode.generate` for tokens, `Sampling` for how to choose."""

from aigc_jax.generation.decode import generate
from aigc_jax.generation.strategies import Sampling
from aigc_jax.generation.text import Completion, Prompts, generate_text, prompts_of

__all__ = ['Completion', 'Prompts', 'Sampling', 'generate', 'generate_text', 'prompts_of']
