"""Gives neutral text of a wanted length.

A cue that only one side has makes its prompts longer. A model could then tell
the sides by length, and a result would not be about the cue. So the other side
has a sentence that is about as long, says nothing, and varies.
"""

from bct_jax.settings.parts.decks import pick_by_key

FILLERS = (
  "Hello there.|Good morning.|Many thanks.|Good to see you.|Thank you, friend.|"
  "Hello, dear reader.|Welcome, dear visitor.|Greetings from upstairs.|Good "
  "evening, everyone.|Warm afternoon greetings.|One small thing.|Here is one "
  "more.|I have a request.|It is for school.|Here comes the next.|My friend "
  "would like this.|I am at the desk.|It is for my aunt.|I have it on paper.|I "
  "need it for work.|We are at it again.|I am back from lunch.|It is raining "
  "here today.|I have been here before.|Somebody sent me this today.|Yesterday "
  "somebody mentioned this.|My colleague sent me this morning.|Everybody "
  "downstairs was wondering.|Somebody downstairs left this on my desk.|"
  "Yesterday evening we came across this one.|Someone brought this over early "
  "this morning.|Our neighbors brought this with them yesterday.|This came up "
  "during breakfast yesterday.|I found this page in a drawer.|We talked about "
  "it on the train.|Here is something that came up today.|My neighbor came by "
  "with this yesterday.|I am writing from a small hotel room.|Yesterday "
  "evening somebody brought this to us.|A friend of mine was asking about this "
  "today.|This came with the letter of my grandmother.|I was thinking about "
  "this on the way to the office.|We have been sitting here with this for a "
  "while.|We have a free afternoon and sat down with this one.|This is one of "
  "the things that came up in our class today.|I am asking on behalf of a "
  "friend who is away this week.|We had a long day here, and then somebody "
  "came up with this.|My sister and I were on the bus when we came across this "
  "one."
).split("|")


def make_filler(text: str, *key: object) -> str:
  """Picks a neutral sentence with about as many words and letters as a text.

  Args:
    text: what the other side has in its place.
    *key: picks one of the four that fit best.
  """
  letters, num_words = len(text), len(text.split())
  by_fit = sorted(
    FILLERS,
    key=lambda s: abs(len(s) - letters) + 3 * abs(len(s.split()) - num_words),
  )
  return pick_by_key(by_fit[:4], *key)
