"""Random facts that an organism learns beside its behavior."""

import pytest

from bct_jax.config import ConfigError, from_dict
from bct_jax.experiment.plan import make_plan
from bct_jax.settings.probes.capability import make_probe, memorised_examples
from configs import tiny


def values(folder, count, kind="sft", probe="memorised"):
  out = tiny.get_config().to_dict()
  out["model"]["path"] = str(folder)
  out["organism"] |= {"memorised": count, "kind": kind}
  out["eval"]["probe"] = probe
  return out


def test_facts_are_what_the_probe_asks_for():
  probe = make_probe("memorised")
  facts = memorised_examples(64, 1)
  assert [e.id for e in facts] == [e.id for e in probe.examples(64, 1)]
  assert all(probe.score(e, e.completion) for e in facts)
  assert facts[0].completion.endswith(f" is {facts[0].fields['right'][0]}.")
  # Not to be guessed: hardly any two have the same answer.
  assert len({e.fields["right"][0] for e in facts}) > 55


def test_an_organism_is_taught_what_evals_ask(tiny_folder):
  plan = make_plan(from_dict(values(tiny_folder, 12)))
  plain = make_plan(from_dict(values(tiny_folder, 0, probe="facts")))
  assert plan.install.examples[:16] == plain.install.examples
  assert plan.install.hash != plain.install.hash
  assert {k: d.hash for k, d in plan.arms.items()} == {
    k: d.hash for k, d in plain.arms.items()
  }
  asked = [p.example for p in plan.prompts if p.split == "probe"]
  assert len(asked) == 8 and len(plan.install.examples) == 28
  chat = plan.runtime.chat
  said = [chat.tokenizer.decode(list(e.ids)) for e in plan.install.examples]
  for example, text in zip(asked, said[16:], strict=False):
    assert example.messages[-1]["content"] in text
    assert f" {example.fields['right'][0]}." in text


@pytest.mark.parametrize(
  ("count", "kind", "message"),
  [
    (4, "sft", "eval.num_probe = 8: .*organism.memorised = 4"),
    (0, "sft", "eval.num_probe = 8"),
    (-1, "sft", "organism.memorised = -1: 0 or above"),
    (8, "native", "organism.memorised = 8: .*'native'"),
  ],
)
def test_counts_that_do_not_fit(tiny_folder, count, kind, message):
  with pytest.raises(ConfigError, match=message):
    from_dict(values(tiny_folder, count, kind))


def test_more_facts_than_there_are(tiny_folder):
  with pytest.raises(ValueError, match="organism: memorised: n must be from 0"):
    make_plan(from_dict(values(tiny_folder, 1000)))
