"""Tasks of lm-eval that need no network, one of each kind of request."""

import json
from pathlib import Path

WORDS = "red green blue black white brown grey pink gold dark".split()
TASK = """
task: colors_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
num_fewshot: 0
"""
KINDS = {
  "choice": """
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: right
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
  "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
  "until": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[right]}}"
generation_kwargs: {until: ["e", "zz"], max_gen_toks: 24, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


def write_tasks(folder: Path) -> Path:
  """Task files and their data; unequal choices, long and short questions."""
  rows = [
    {
      "question": f"Which {w} is {'very ' * (i % 5)}{v}?",
      "choices": [w, f"a {v} one", "none at all", v],
      "right": i % 4,
    }
    for i, (w, v) in enumerate(zip(WORDS, reversed(WORDS), strict=True))
  ]
  data = folder / "rows.json"
  data.write_text("\n".join(json.dumps(r) for r in rows))
  for kind, text in KINDS.items():
    head = TASK.format(kind=kind, data=data)
    (folder / f"{kind}.yaml").write_text(head + text)
  return folder
