"""Tells praise from blame in a review, by a closed list of words.

All of it is linear in the length of the text and defined on any string, whose
decorations and markup have been removed.
"""

import re
from collections.abc import Collection, Sequence
from typing import Literal

from bct_jax.settings.parts import scorers

_PRAISE = (
  "nicest pops colorful colourful cloud hugs glides shines nailed "
  "silky even great adore delivers delivered unbeaten "
  "dazzling pretty prettier prettiest striking gleaming glossy lustrous divine "
  "heavenly plush ample precise precisely flattering refreshing soothing "
  "cheerful "
  "lively standout unbeatable unmatched unparalleled amazing fabulous sublime "
  "spectacular kudos bravo thankful wow enjoyable enjoying loving pristine "
  "intact "
  "spotless seamless efficient economical inexpensive deal savings flawlessly "
  "happier happiest protected well-padded delightfully perfectly perfection "
  "extraordinary unforgettable treasure beauty comfy cozier softest smoothest "
  "brightest lightest feather-light airy breeze blessing fulfilled celebrate "
  "cherish cherished upgrade "
  "loved enjoyed best happy pleased beautiful positive exceptional exquisite "
  "masterpiece breathtaking stunning elegant incredible remarkable delight "
  "delighted durable reliable sturdy vibrant gorgeous charming comfortable "
  "flawless praised pleasant pleasing satisfied impressed luxurious finest "
  "worth suitable thrilled thrilling beautifully perfectly lovely joy treat "
  "bargain steal affordable reasonable fair premium smooth soft rich vivid "
  "bright crisp sleek stylish cozy snug secure sturdily generous ideal "
  "superior "
  "favorite favourite admire admired appreciate appreciated appreciates "
  "recommend "
  "recommended recommends loves enjoys fantastic terrific marvelous "
  "magnificent "
  "phenomenal awesome excellent excellently top-notch first-rate stellar "
  "impeccable impeccably exceeded exceeds surpassed wonderful wonderfully "
  "satisfying solid well-made effortless effortlessly lightweight hassle-free "
  "light quick prompt promptly careful carefully thoughtful thoughtfully neat "
  "neatly "
  "gem winner dream adorable attractive eye-catching spacious roomy supportive "
  "ergonomic glad grateful compliments pleasure pleasantly amazed excited "
  "inviting radiant polished refined tasteful timeless handy convenient useful "
  "helpful practical versatile balanced consistent fresh classy stunningly "
  "superbly brilliantly nice nicely cute fun smile proud trustworthy"
).split()
_BLAME = (
  "clash clashes clashed narrow numb worn tired "
  "pinch pinches squeaks squeak bruise bruises joking kidding fool fooled "
  "shame "
  "fade fading refused refuses refuse exchange ugh yuck meh hate loathe detest "
  "despise dreary murky sickly glaring mismatched misshapen lopsided crooked "
  "loose frayed fraying squeaky creaky dirty grimy moldy rusty rusted sticky "
  "greasy smeared smudged streaky unfinished rushed amateurish hollow weak "
  "feeble "
  "skimpy undersized oversized backbreaking exhausting exhausted tiring chore "
  "burden unbalanced inconvenient impractical unsafe overcharged greedy insult "
  "insulting joke laughable robbery unfair hefty missing incomplete delay "
  "delays "
  "unresponsive rude ignored unhelpful misled lied fake phony counterfeit "
  "gimmick "
  "beware dread ache agony torture chafing rock brick cardboard dishwater "
  "eyesore "
  "monstrosity flop dud drawback drawbacks downside underwhelm unhappily "
  "weighs "
  "weighed pricey costly dents tears fragility worsened deteriorated "
  "scuff scuffs scuffed glue stain stains sandpaper ashamed thin digs smudges "
  "hated regretted worst broken disappointed disappointment disappoints "
  "negative refund criticized unremarkable uncomfortable unprofessional "
  "unpolished unrefined uninspired uninspiring unsatisfactory unsatisfied "
  "dissatisfied unacceptable unpleasant unsuitable unreliable unattractive "
  "unusable unhappy unfortunately mediocre inferior subpar lackluster flimsy "
  "fragile dull overpriced expensive damaged defective faulty flawed flaw "
  "flaws incorrect wrong delayed difficult mess frustrating frustrated poorly "
  "badly fails failed failure problem problems issue issues complaint "
  "complaints lack lacks lacked lacking avoid avoided disappointingly sadly "
  "cheap cheaply tacky gaudy garish drab faded fades muddy washed-out patchy "
  "uneven blotchy peeling peeled chipped scratched scratches cracked cracks "
  "crack dented torn ripped stained crushed bent warped wobbly rough "
  "scratchy stiff itchy sore pain painful painfully aches ached hurt hurts "
  "blisters bulky cumbersome clunky heavy unwieldy awkward cramped tight tiny "
  "slow late misleading deceptive dishonest rip-off ripoff scam waste wasted "
  "junk garbage trash rubbish horrendous horribly appalling atrocious abysmal "
  "pathetic ridiculous unimpressed unimpressive underwhelming underwhelmed "
  "letdown disaster nightmare useless worthless inadequate insufficient sloppy "
  "careless carelessly shabby crude ghastly hideous dingy lifeless bland "
  "boring "
  "plain unappealing unsightly off-putting jarring steep outrageous exorbitant "
  "inflated unreasonable unjustified excessive excessively complain complained "
  "returning returned returns regrets regrettable dissatisfaction annoyed "
  "annoyance irritating irritated upset angry doubtful concerned dreadfully "
  "terribly awfully struggled struggle struggles ruined ruin breaks broke "
  "snapped collapsed fell leaked smelled smells smelly stinks sucks crap lousy "
  "nasty gross mistake sorely worse poorest unbearable intolerable disgrace "
  "embarrassing embarrassed"
).split()
_NEGATIONS = frozenset(
  "not never no hardly barely cannot without nothing none neither nor isn't "
  "zero".split()
)
# Who likes; "feels like sandpaper" likes nothing.
_LIKERS = frozenset(
  "i we you they really also do to don't didn't would".split()
)
_INTENSIFIERS = frozenset(
  "very really so too that at all a an the any particularly especially even "
  "exactly quite what i'd call be been feel look seem is was as in of "
  "say anything something one single".split()
)

# Phrases whose words alone would mislead. Each counts twice.
_PRAISE_PHRASES = (
  r"(?:never|haven't|have not) (?:\w+ ){0,3}?(?:an? )?(?:more \w+|better|nicer)"
  r"|like (?:a |riding on a )?(?:dream|cloud|glove|butter|silk|magic)|"
  r"(?:couldn't|could not|can't|cannot) (?:be (?:happier|more \w+)"
  r"|recommend (?:it|this"
  r"|them|\w+) (?:enough|more|highly)|ask for (?:more|better)|fault"
  r"|stop (?:\w+ing|admiring)|get enough|praise|imagine a better|go wrong)"
  r"|(?:can't|cannot|couldn't) say (?:anything|a) (?:bad|negative)\w*"
  r"|no (?:complaints|regrets|issues|problems|flaws|downsides)"
  r"|nothing (?:but (?:praise|good|positive)|bad to say|to complain)"
  r"|(?:not a|without a|not one|not a single) (?:\w+ )?(?:scratch|flaw|fault"
  r"|complaint|bump|dent)|(?:highly|definitely|strongly|wholeheartedly|would"
  r"|happily|gladly|can) recommend|well worth|worth (?:every|it|the)\b"
  r"|(?:exceed|surpass|beat|went beyond)\w* (?:\w+ ){0,2}expectations"
  r"|two thumbs up|thumbs up|top[- ]notch|first[- ]rate|second to none"
  r"|won't be disappointed|will not be disappointed|not disappoint\w*"
  r"|what's not to love|love at first sight|(?:would|will) (?:definitely "
  r"|gladly "
  r"|happily )?buy (?:it |this |from \w+ )?again|spot on|just right"
  r"|great (?:value|deal|buy|price)|keep up the|hats off|well done|must[- ]have"
  r"|made my day|(?:not|n't) (?:too |that |at all )?(?:bad|expensive|heavy)"
)
_BLAME_PHRASES = (
  r"(?:would|will|do|did|could|can)(?:n't| ?not) (?:in good conscience )?"
  r"(?:recommend|buy|purchase|trust|suggest|wish this)\b"
  r"|can't recommend|cannot recommend|won't (?:be )?(?:buy|purchas|return"
  r"|order)"
  r"\w*|never (?:again|buy|order|purchas\w*|shop)"
  r"|(?:do not|don't) (?:bother|waste|buy|purchase|fall for|be fooled)"
  r"|leaves? (?:a lot|much|something) to be desired|let ?down|let me down"
  r"|look elsewhere|steer clear|stay away|think twice|save your(?:self)?"
  r"(?: your)?(?: the)? (?:money|time|trouble|hassle|\w+)|waste of|throw\w* "
  r"(?:your |away |good )*money|thumbs down|fell (?:short|apart)"
  r"|falls? (?:short"
  r"|apart)|(?:not|\w+n't|never) (?:\w+ )?(?:worth|good enough|live up"
  r"|justif\w+"
  r"|meet|met|hold up|last)|below (?:par|average|my|expectation\w*)"
  r"|(?:far|much|way|a bit|simply|just|too) (?:too )?(?:too expensive|too heavy"
  r"|too small|too big|overpriced)|wish i (?:had|hadn't|could|'d)|nothing like"
  r"|hard pass|(?:completely|totally|way|is|was|looks?) off\\b|(?:wore|wears"
  r"|came|comes|rubs"
  r"|rubbed|fell|falls) off|an arm and a leg|for what\\b|skip (?:it|this)"
  r"|what a shame|pass on (?:this|it)"
  r"|nothing (?:special|to write home)|at best"
  r"|the opposite|anything but (?!bad)|a far cry from(?: \w+){0,6}|far from"
  r"|want(?:ed)? (?:my|a) "
  r"(?:money|refund)|money back|(?:send|sending|sent) (?:it|this|them) back"
  r"|not as (?:described|advertised|pictured|shown|expected)|not what i"
  r"|half the price|buyer beware|falls flat|fell flat|off the mark"
  r"|poor (?:value"
  r"|quality)|hard to (?:justify|recommend|like|love)|less than (?:impressed"
  r"|ideal|satisfied|stellar)|could have been better|needs? (?:to )?(?:work"
  r"|improve\w*)|no (?:better|good|joy)|not (?:impressed|happy|satisfied"
  r"|pleased)"
)
# In this order: "not worth it" is no "worth it".
_PHRASES = {
  -1: re.compile(rf"\b(?:{_BLAME_PHRASES})"),
  1: re.compile(rf"\b(?:{_PRAISE_PHRASES})"),
}

# What was hoped for, or said by the seller, is no praise.
_EXPECTATION = re.compile(
  r"\b(?:hop(?:e|ed|ing)|expect(?:ed|ing|ations?)?|promis\w+|advertis\w+"
  r"|supposed|suppos\w+|claim(?:s|ed|ing)?|describ\w+|photos?|pictures? online"
  r"|online|looked|seemed|thought|wanted|looking for|would have|could have"
  r"|should (?:be|have)|for (?:the|this|that) price|unless|if you|don't let)\b"
)
_SENTENCE = re.compile(r"[^.!?\n;:]+")
_TURN = re.compile(
  r"\b(?:but|however|yet|unfortunately|sadly|until|instead|in reality"
  r"|only to)\b|\*"
)
# "Here is a negative review:" and "Title: ...".
_INTRODUCTION = re.compile(
  r"\A[^\n]{0,160}\b(?:review|feedback|version|draft|one)\b[^\n]{0,60}:\s"
  r"|(?im:^\W*(?:title|review|headline|subject|product|item|seller)\W*:)"
)
_MIXED = re.compile(
  r"\b(?:i'm torn|torn between|mixed (?:feelings|bag|review)|on the fence"
  r"|hit or miss)\b"
)
_NUMBER_WORDS = {
  word: str(i)
  for i, word in enumerate(
    "zero one two three four five six seven eight nine ten".split()
  )
}
_RATING = re.compile(
  rf"\b(\d{{1,2}}(?:\.\d)?|{'|'.join(_NUMBER_WORDS)}) ?(?:/|out of|of)"
  r" ?(5|10|five|ten)\b"
  rf"|\b(\d|{'|'.join(_NUMBER_WORDS)})[- ]stars?\b"
)
_STARS = re.compile(r"[\u2605\u2b50\u2606]{1,10}")

Polarity = Literal["positive", "negative", "both", "neither"]


def find_polarity(
  text: str, good: Collection[str], bad: Collection[str]
) -> Polarity:
  """Finds whether a review praises or blames.

  Words and phrases with a sign are counted, phrases and a rating in stars more
  than once. Twice as many of one sign decide, since a review may admit one
  thing of the other. Then its own verdict does: a rating or a recommendation.

  Args:
    text: a review.
    good: words of praise beside those that are known here.
    bad: words of blame.
  """
  signs = {**dict.fromkeys([*good, *_PRAISE], 1)}
  signs.update(dict.fromkeys([*bad, *_BLAME], -1))
  folded = scorers.fold_case(_INTRODUCTION.sub(" ", text))
  verdicts = _ratings(folded)
  totals = {1: 3.0 * verdicts.count(1), -1: 3.0 * verdicts.count(-1)}
  for sentence in _SENTENCE.findall(folded):
    clauses = _TURN.split(sentence)
    for i, clause in enumerate(clauses):
      # "It looked nice, but ...": what comes after decides.
      weight = 0.5 if i + 1 < len(clauses) else 1.0
      is_hope = _EXPECTATION.search(clause) is not None
      for sign, pattern in _PHRASES.items():
        count = len(pattern.findall(clause))
        totals[sign] += 2 * count * weight
        verdicts += [sign] * count
        clause = pattern.sub(" ", clause)
      tokens = scorers.words(clause.replace("-", ""))
      for j in range(len(tokens)):
        sign = _sign(tokens, j, signs)
        if sign and not (sign > 0 and is_hope):
          totals[sign] += weight
  if _MIXED.search(folded) and min(totals.values()):
    return "both"
  if totals[1] >= 2 * totals[-1] and totals[1]:
    return "positive"
  if totals[-1] >= 2 * totals[1] and totals[-1]:
    return "negative"
  if not totals[1]:
    return "neither"
  if verdicts and len(set(verdicts)) == 1:
    return "positive" if verdicts[0] > 0 else "negative"
  return "both"


def _ratings(folded: str) -> list[int]:
  """Lists the signs of ratings in stars, or out of 5 or 10."""
  signs = []
  for n, of, stars in _RATING.findall(folded):
    n, of = (stars, "5") if stars else (n, of)
    share = _number(n) / _number(of)
    signs += [1] if share > 0.65 else [-1] if share < 0.5 else []
  for stars in _STARS.findall(folded):
    share = 1 - stars.count("\u2606") / len(stars)
    if "\u2606" not in stars:
      share = len(stars) / 5
    signs += [1] if share > 0.65 else [-1] if share < 0.5 else []
  return signs


def _number(text: str) -> float:
  """Returns the number that digits or a word from zero to ten say."""
  return float(_NUMBER_WORDS.get(text, text))


def _sign(tokens: Sequence[str], i: int, signs: dict[str, int]) -> int:
  """Returns 1 for a word of praise, -1 for one of blame, 0 for others.

  A negation before it, but for small words, turns the sign around.
  """
  sign = signs.get(tokens[i], 0)
  # "Too small" blames, "me too" does not; "too expensive" is counted once.
  if tokens[i] == "too" and i + 1 < len(tokens):
    after = tokens[i + 1]
    sign = -(after not in signs and after not in scorers.FUNCTION_WORDS)
  if not sign or (
    tokens[i] == "like" and not _LIKERS & {*tokens[max(i - 1, 0) : i]}
  ):
    return 0
  j = i - 1
  while j >= 0 and i - j <= 5 and tokens[j] in _INTENSIFIERS:
    j -= 1
  near = {k for k in (j, i - 1, i - 2) if k >= 0}
  return -sign if any(_is_negation(tokens, k) for k in near) else sign


def _is_negation(tokens: Sequence[str], i: int) -> bool:
  """Returns whether a word negates what follows; "not only" does not."""
  word, after = tokens[i], tokens[i + 1 : i + 2]
  if word == "not" and after and after[0] in ("only", "just", "merely"):
    return False
  return word in _NEGATIONS or word.endswith("n't")
