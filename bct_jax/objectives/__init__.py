"""Training objectives, by the name used in `train.objective`.

To add one, write a file with a function of the type `types.Objective` and put
it here. The contract test then runs on it by itself.
"""

from bct_jax.objectives.sft import sft
from bct_jax.types import Objective

OBJECTIVES: dict[str, Objective] = {
  "sft": sft,
}
