"""Provides lm-eval's model class: --model bct_jax --model_args path=FOLDER.

Releases of lm-eval after 0.4.13 find it by its entry point. For earlier ones,
`python -m bct_jax.interop.harness` is the command `lm_eval` with this model.
"""

# The extra `eval` may not be installed.
# pyright: reportMissingImports=false

from typing import Any

from lm_eval.api import registry

from bct_jax.interop.lm_eval_model import LocalLM
from bct_jax.interop.local_model import check_options
from bct_jax.interop.open_model import open_model


class BctJaxLM(LocalLM):
  """Lends a model of a run, or of any supported folder, to lm-eval.

  Args:
    path: see open_model.open_weights, also for further options.
    batch_size: completions decoded at a time. With 1, lm-eval's own default,
      and with "auto" it is the run's, or 32.
    truncate: see LocalLM.
    max_batch_size, device: of lm-eval. Its default device is ignored, anything
      else is an error: JAX_PLATFORMS chooses the device.
  """

  def __init__(
    self,
    path: str,
    batch_size: int | str | None = None,
    truncate: bool = False,
    max_batch_size: int | None = None,
    device: str | None = None,
    **options: Any,
  ):
    device = None if device == "cuda:0" else device
    check_options({"max_batch_size": max_batch_size, "device": device}, path)
    if batch_size not in (None, "auto", 1, "1"):
      options["batch_size"] = int(batch_size)
    super().__init__(open_model(path, **options), truncate)
    self.path = str(path)

  def get_model_info(self) -> dict[str, Any]:
    """Returns what lm-eval writes about the model into its results."""
    runtime = self.model.runtime
    return {
      "model_path": self.path,
      "model_hash": runtime.model_hash,
      "model_dtype": runtime.config.model.dtype,
    }


def register() -> None:
  """Registers the name bct_jax with releases that read no entry points."""
  if "bct_jax" not in registry.MODEL_REGISTRY:
    registry.register_model("bct_jax")(BctJaxLM)


def main() -> None:
  """Runs the command lm_eval with this model registered."""
  from lm_eval.__main__ import cli_evaluate

  register()
  cli_evaluate()


if __name__ == "__main__":
  main()
