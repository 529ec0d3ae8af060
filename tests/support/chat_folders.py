"""Small folders with a tokenizer and a chat template, and no weights."""

import json
import re
import shutil
from pathlib import Path

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers

from bct_jax.models.demo.tiny import byte_characters

CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
  "{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What looks like a special or an added token in a template.
_MARKUP = re.compile(
  r"<\|[^|<>]{1,30}\|>|<｜[^｜]{1,30}｜>|<\|\w+>|<\w+\|>|</?\w+>|\[\|\w+\|\]"
  r"|\[/?[A-Z_]+\]"
)


def markup(template: str) -> list[str]:
  """The tokens that a template writes, each once."""
  return [*dict.fromkeys(_MARKUP.findall(template))]


def byte_tokenizer(specials: list[str]) -> tokenizers.Tokenizer:
  """One token for each byte."""
  characters = sorted(byte_characters().items())
  vocab = {character: byte for byte, character in characters}
  out = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  out.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  out.decoder = decoders.ByteLevel()
  out.add_special_tokens(specials)
  return out


def sentencepiece_tokenizer(specials: list[str]) -> tokenizers.Tokenizer:
  """A vocabulary as Llama 2 has it: every text gets a space before it."""
  texts = [
    "Is it? Yes. No. [INST] Where is the boat now? [/INST] In lake 12, it is.",
    "USER: What is it ASSISTANT: It is the boat. Four and two, a 1",
  ] * 8
  out = tokenizers.Tokenizer(
    tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True)
  )
  out.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
  )
  out.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=700,
    special_tokens=["<unk>", *(f"<0x{i:02X}>" for i in range(256))],
    show_progress=False,
  )
  # No token has a space within it.
  out.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
  out.train_from_iterator(texts, trainer)
  out.pre_tokenizer = None
  state = json.loads(out.to_str())
  state["added_tokens"] = []  # bytes are ordinary tokens
  out = tokenizers.Tokenizer.from_str(json.dumps(state))
  out.add_special_tokens(["<unk>", *specials])
  return out


def make_folder(
  folder: Path,
  template: str | list | None,
  *,
  eos: str = "<EOS>",
  ends: tuple[str, ...] = (),
  tokenizer=byte_tokenizer,
  specials: tuple[str, ...] = (),
  **config,
) -> Path:
  """Writes a tokenizer with the special tokens of a template.

  `ends` are further ids of generation_config.json; `config` are further fields
  of tokenizer_config.json.
  """
  names = ["<BOS>", eos, *ends]
  names += markup(template) if isinstance(template, str) else []
  names += specials
  built = tokenizer([*dict.fromkeys(names)])
  folder.mkdir(parents=True)
  built.save(str(folder / "tokenizer.json"))
  tokenizer_config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<BOS>",
    "eos_token": eos,
    "pad_token": eos,
    "clean_up_tokenization_spaces": False,
    **({} if template is None else {"chat_template": template}),
    **config,
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
  ids = [built.token_to_id(t) for t in (eos, *ends)]
  (folder / "generation_config.json").write_text(
    json.dumps({"eos_token_id": ids})
  )
  return folder


def make_dated(model: Path, folder: Path) -> Path:
  """Copies a model folder; its chat template then begins with the day."""
  shutil.copytree(model, folder)
  path = folder / "tokenizer_config.json"
  values = json.loads(path.read_text())
  own = folder / "chat_template.jinja"
  text = own.read_text() if own.exists() else values["chat_template"]
  own.unlink(missing_ok=True)
  values["chat_template"] = "{{ strftime_now('%Y-%m-%d') }}\n" + text
  path.write_text(json.dumps(values))
  return folder
