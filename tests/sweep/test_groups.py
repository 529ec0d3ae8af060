"""Which cells one program may train."""

import jax
import pytest

from bct_jax.config import ConfigError
from bct_jax.sweep import cells
from bct_jax.sweep.cells import product, values
from bct_jax.sweep.groups import can_share_program
from configs import tiny


def part(rank):
  base = tiny.get_config()
  base.arms = {}
  overrides = product(values("lora.rank", rank), values("optim.lr", 1e-4, 1e-3))
  return cells.make_cells(base.to_dict(), overrides)


@pytest.mark.parametrize(
  ("rank", "experts", "platform", "shares"),
  [
    (4, False, "gpu", True),
    (4, False, "cpu", False),
    (4, True, "gpu", False),
    (0, False, "gpu", False),
  ],
)
def test_the_device_and_the_model_choose(
  rank, experts, platform, shares, monkeypatch
):
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  assert can_share_program(part(rank), None, experts) is shares


@pytest.mark.parametrize(
  ("rank", "experts", "message"),
  [(4, True, "has experts.*--novmap"), (0, False, "trains all params")],
)
def test_what_cannot_be_is_refused(rank, experts, message):
  with pytest.raises(ConfigError, match=message):
    can_share_program(part(rank), True, experts)
  assert not can_share_program(part(rank), False, experts)
