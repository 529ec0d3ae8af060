"""One of several processes that share a judge; prints the replies as JSON.

python judge_worker.py RANK COUNT PORT FOLDER. Only the first process can ask.
"""

import json
import os
import sys
from pathlib import Path

RANK, COUNT, PORT = map(int, sys.argv[1:4])
os.environ["JAX_PLATFORMS"] = "cpu"
if RANK:
  del os.environ["OPENAI_API_KEY"], os.environ["OPENAI_BASE_URL"]

from judge_server import RUBRIC  # noqa: E402

from bct_jax.config import JudgeConfig  # noqa: E402
from bct_jax.infra import processes  # noqa: E402
from bct_jax.interop.judge import InspectJudge  # noqa: E402

processes.join(f"127.0.0.1:{PORT}", COUNT, RANK)
folder = Path(sys.argv[4])
rubric = folder / f"rubric {RANK}.txt"
rubric.write_text(RUBRIC)
judge = InspectJudge(JudgeConfig("openai/gpt-test", str(rubric)))
judge.open(folder / "judge.jsonl")
row = {"prompt": "Hello?", "key": "x"}
prompts = [judge.rubric.render(row, f"answer {i}") for i in range(70)]
judge.ask(prompts)
print(json.dumps([judge.reply(p) for p in prompts]))
processes.leave(0)
