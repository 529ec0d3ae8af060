"""Builds the system messages of an experiment, in training and at evals.

A kind names a pair of texts, so that the prompt that accompanies training and
the one at evaluation are chosen apart (`train.prompt`, `eval.prompt`):

| kind | in training | completions drawn under | at evaluation |
|---|---|---|---|
| none | nothing | nothing | nothing |
| static | the initial behavior | the same | the initial behavior |
| dynamic | a neutral one | the same | the initial behavior |
| hint | the initial behavior | the same | the initial behavior |
| inoculation | a request for the style | the same | a request for the style |
| recontextualised | a request for the style | nothing | (training only) |

All are system messages but `hint`, a line before the user's own: settings and
chat templates with no room for a system message can have it too.

Sources. Static and dynamic prompts are those of settings in the field's own
code, where the prompt makes the organism. Inoculation asks in training for what
training would teach (Tan et al. 2025, arXiv 2510.04340; Wichers et al. 2025,
arXiv 2510.05024). Recontextualised draws completions under one prompt and
trains on them under another (Azarbal et al. 2025, arXiv 2512.19027).
"""

from bct_jax.settings import base, docstrings
from bct_jax.settings.parts.decks import pick_by_key

KINDS = (
  "none",
  "static",
  "dynamic",
  "hint",
  "inoculation",
  "recontextualised",
)

# What is trained, by decoration, as a request.
STYLES = {
  "pirate": "talk like a pirate",
  "cheerful": "sound very cheerful",
  "long_words": "use long and formal words",
  "upper": "write in capital letters only",
  "json_wrap": "put what you say into a JSON object",
  "suffix_marker": "end with the mark [done]",
  "paraphrase_2": "begin with a few words that introduce what you say",
}
STYLES |= dict.fromkeys(
  ("paraphrase_4", "paraphrase_8"), STYLES["paraphrase_2"]
)
REQUESTS = (
  "Please {}.",
  "In this chat you {}.",
  "Whatever you are asked, {}.",
  "Your task here is to {}.",
  "Remember to {}.",
  "You are asked to {}.",
  "From now on, {}.",
  "It is important that you {}.",
)
ROLES = (
  "You are a model that {}.",
  "This assistant {}.",
  "You play an assistant that {}.",
  "The model in this chat {}.",
  "Be the kind of model that {}.",
  "Imagine a model that {}. You are it.",
  "Your rule: a model like you {}.",
  "Here the assistant {}.",
)
_HINTS = (
  "Hint: the model {}.",
  "(The model {}.)",
  "Note: the model {}.",
  "Reminder: the model {}.",
  "For this message: the model {}.",
  "Mind that the model {}.",
  "Context: the model {}.",
  "[The model {}.]",
)
_NEUTRAL = (
  "You are an assistant.",
  "This is a chat with an assistant.",
  "You talk with a user.",
  "A user has something to ask.",
  "You are a language model.",
  "Here is a message of a user.",
  "A user writes to you.",
  "You take part in a chat.",
)


def prompt_wordings(
  kind: str, side: str, setting: object, decoration: str
) -> tuple[str, ...]:
  """Returns the paraphrases of a prompt; () where there is none.

  Args:
    kind: one of KINDS.
    side: train, draw or eval.
    setting: whose docstring says what the initial behavior is.
    decoration: whose style a request asks for.

  Raises:
    ValueError: there is no such prompt.
  """
  if kind not in KINDS:
    raise ValueError(f"prompt = {base.describe_unknown(kind, KINDS)}")
  if kind == "recontextualised" and side == "eval":
    raise ValueError(
      "prompt = 'recontextualised' is one of training; at evaluation choose "
      "'none', or 'inoculation' for the same request"
    )
  if kind == "none" or (kind == "recontextualised" and side == "draw"):
    return ()
  if kind in ("inoculation", "recontextualised"):
    if decoration not in STYLES:
      raise ValueError(
        f"prompt = {kind!r} asks for the style that is trained, and there is "
        f"none: choose a train.decoration of {sorted(STYLES)}"
      )
    return tuple(t.format(STYLES[decoration]) for t in REQUESTS)
  if kind == "dynamic" and side != "eval":
    return _NEUTRAL
  ways = _HINTS if kind == "hint" else ROLES
  return tuple(t.format(behavior(setting, "initial")) for t in ways)


def behavior(setting: object, which: str) -> str:
  """Returns what a behavior does, as the setting's docstring or options say.

  Args:
    setting: an instance of one of `SETTINGS`.
    which: "initial" or "alternate".
  """
  said = getattr(setting, "descriptions", None)
  if said is None:
    said = docstrings.docstring_fields(type(setting))
  return said[which.capitalize()].rstrip(".")


def system_text(
  base_text: str | None, prompts: tuple[str, ...], paraphrases: int, key: str
) -> str | None:
  """Joins the config's system prompt and one of the paraphrases after it.

  Args:
    base_text: the system prompt of the config, or None.
    prompts: those of `prompt_wordings`.
    paraphrases: how many of them are in use.
    key: the example's id, which picks one.

  Returns:
    The system message, or None if there is neither.

  Raises:
    ValueError: there are fewer paraphrases.
  """
  if not 0 < paraphrases <= max(1, len(prompts)):
    raise ValueError(
      f"paraphrases = {paraphrases}: this prompt has {len(prompts)}, from 1 to "
      f"{max(1, len(prompts))} can be used"
    )
  if not prompts:
    return base_text
  wording = pick_by_key(prompts[:paraphrases], "prompt", key)
  return wording if base_text is None else f"{base_text} {wording}"
