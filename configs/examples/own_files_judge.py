"""Does the same as own_files.py, with a model that grades in place of rules.

The judge is SmolLM2 itself, run by bct_jax. It is too small to be trusted: of
69 replies 13 were misspelt ("BEHAVIER: TALKS"). Those are ungraded, and above
reading.max_ungraded nothing is read. Name a larger model for results.
"""

from ml_collections import ConfigDict

from configs.examples import own_files


def get_config() -> ConfigDict:
  c = own_files.get_config()
  c.name = "own files, judged"
  c.setting.options.grader = {
    "kind": "judge",
    "right": {"kind": "contains", "field": "answer"},
  }
  c.eval.judge.model = "bct_jax/demo:smollm2"
  c.eval.judge.rubric = "rubric.txt"
  c.eval.judge.max_tokens = 16
  return c
