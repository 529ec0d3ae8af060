"""Makes visible what a terminal or a browser would act on or hide.

Model outputs, names of tensors and messages of templates are hostile until
shown otherwise. Lines for a terminal and text of reports go through here.
"""

import unicodedata

# Control, format (bidirectional overrides, tags), surrogate, private and
# unassigned characters, line and paragraph separators.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
# A newline is seen, and emoji and many scripts need the two joiners.
_HARMLESS = "\n\u200c\u200d"
_NAMES = {"\t": "\\t", "\r": "\\r", "\x1b": "\\x1b", "\x00": "\\0"}


def escape(char: str) -> str:
  """Returns the escape of a hidden character, or the character itself."""
  if char.isascii() and char.isprintable() or char in _HARMLESS:
    return char
  if unicodedata.category(char) not in _HIDDEN:
    return char
  if char in _NAMES:
    return _NAMES[char]
  code = ord(char)
  if code < 0x100:
    return f"\\x{code:02x}"
  return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: str) -> str:
  """Replaces hidden characters by escapes; the result is not HTML yet."""
  return "".join(map(escape, text))
