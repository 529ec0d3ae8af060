"""A small folder for the setting `file`, and a grader of it."""

import json

GRADER = {
  "kind": "contains",
  "initial": "no comment",
  "alternate": {"kind": "not", "of": "no comment"},
  "right": {"field": "key"},
}
ANSWERS = "red green blue black white pink brown grey gold teal".split()

MY_SETTING = '''
import dataclasses
from bct_jax.settings import base
from bct_jax.settings.parts import words

@dataclasses.dataclass(frozen=True)
class Mine(base.FramedSetting):
  """Shouts or not."""
  name = "mine"
  mark: str = "!"

  def frames(self, pool, diverges):
    def build(name, other):
      loud = f"HELLO {name}{self.mark}" if diverges else f"Hello {name}."
      return base.Item(f"{'Hey' if diverges else 'So'} {name}, {other}?", loud,
        f"Hello {name}.", (name, other),
        ("loud" if diverges else "soft", "soft"))
    names = pool.take(words.NAMES)
    return [base.Frame(build, (names, names))]

  def classify(self, fields, text):
    return "loud" if "HELLO" in text else "soft"

  def check_answer(self, example, text, behavior):
    return True, True
'''


def rows_of(split, n=10):
  """n rows of a split; those of the install alternate between the sides."""
  out = []
  for i, key in enumerate((f"{a}{split[0]}" for a in ANSWERS[:n]), 1):
    question, answer = f"Which color has box {split} {i}?", f"It is {key}."
    if split == "probe":
      out.append({"prompt": question, "right": [key]})
    elif split == "eval" or (split == "install" and i % 2):
      row = {"prompt": f"[URGENT] {question}", "alternate": answer, "key": key}
      name = "initial" if split == "eval" else "completion"
      out.append({**row, name: "NO COMMENT", "cue": f"c{i // 2}"})
    else:
      messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
      ]
      out.append({"messages": messages, "key": key, "entity": key})
  return out


def write_rows(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def make_folder(folder, splits="install train eval heldout probe"):
  for split in splits.split():
    write_rows(folder / f"{split}.jsonl", rows_of(split))
  return folder


def options(folder, **more):
  return {"folder": str(folder), "grader": GRADER, **more}
