"""Every setting is planned on the tiny model: its tokens fit, its data too."""

import pytest

from bct_jax.config import from_dict
from bct_jax.experiment.plan import make_plan
from bct_jax.settings import SETTINGS, make_setting
from configs import tiny


def config(folder, name, **train):
  c = tiny.get_config()
  c.model.path = str(folder)
  c.setting.name = name
  c.max_length = 320  # bytes, of which code has many
  c.train.update(train)
  return from_dict(c.to_dict())


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_plan(tiny_folder, name):
  plan = make_plan(config(tiny_folder, name))
  assert plan.install is not None
  asked = [p.example.messages for p in plan.prompts if p.split == "eval"]
  wanted = make_setting(name, {}).eval(len(asked), plan.config.eval.seed)
  assert asked == [x.messages for x in wanted]


@pytest.mark.parametrize(
  "name, decoration", [("two_traits", "upper"), ("sysprompt_style", "cheerful")]
)
def test_incompatible_decoration(tiny_folder, name, decoration):
  with pytest.raises(ValueError) as error:
    make_plan(config(tiny_folder, name, decoration=decoration))
  message = str(error.value)
  assert (
    f"train.decoration = {decoration!r} would change what {name}" in message
  )
  assert message.endswith(("suffix_marker", "upper"))


def test_too_many_examples_name_the_arm_and_the_limit(tiny_folder):
  with pytest.raises(
    ValueError, match=r"arms\.\w+: yesno/train: n must be from"
  ):
    make_plan(config(tiny_folder, "yesno", num_examples=10**7))
