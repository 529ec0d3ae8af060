"""Registers the name bct_jax with inspect_ai.

inspect_ai always imports this module, so it imports nothing heavy.
"""

# The extra `eval` may not be installed.
# pyright: reportMissingImports=false

from inspect_ai.model import ModelAPI, modelapi


@modelapi("bct_jax")
def bct_jax() -> type[ModelAPI]:
  """Returns the model provider."""
  from bct_jax.interop.inspect_provider import BctJaxAPI

  return BctJaxAPI
