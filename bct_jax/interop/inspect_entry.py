"""What inspect_ai imports to learn the name; light, since it always does."""

# The extra `eval` may not be installed.
# pyright: reportMissingImports=false

from inspect_ai.model import ModelAPI, modelapi


@modelapi("bct_jax")
def bct_jax() -> type[ModelAPI]:
  from bct_jax.interop.inspect_provider import BctJaxAPI

  return BctJaxAPI
