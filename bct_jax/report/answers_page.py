"""Writes the page of answers that a person is to label."""

from collections.abc import Mapping, Sequence
from typing import Any

from bct_jax.report import browser, make_environment


def render_answers(
  sample: Sequence[Mapping[str, Any]], labels: Mapping[str, Sequence[str]]
) -> str:
  """Returns the page as HTML; it needs no network.

  Args:
    sample: number, split, prompt and reply of each answer.
    labels: those that there are, by split.
  """
  page = make_environment().get_template("answers.html.j2")
  return page.render(sample=sample, labels=labels, parts=browser.page_parts())
