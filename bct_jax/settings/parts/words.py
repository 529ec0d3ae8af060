"""Lists the words that questions are filled with. Data only, no code.

Every word that a question can show as an entity is here. A word belongs to one
pool wherever it occurs (see `pools.pool_of`), so the tables may share words
("dog" is in SOUNDS and in KINDS_OF_THING). The two words of a pair may occur in
no other table, because a pair is pooled as one.
"""

NAMES = (
  "Adam Alan Albert Alice Amy Andrew Angela Ann Anna Arthur Barbara Ben Betty "
  "Bill Bob Brian Carl Carol Cathy Charles Chris Clara Daniel David Diana "
  "Donald Donna Doris Dorothy Edward Eleanor Ellen Emily Emma Eric Ethan Eva "
  "Frank Fred Gary George Gloria Grace Hannah Harry Helen Henry Howard Isaac "
  "Ivan Jack Jacob James Jane Janet Jason Jean Jennifer Jerry Jessica Jim Joan "
  "Joe John Judy Julia Karen Kate Keith Kelly Kevin Larry Laura Lee Leo Linda "
  "Lisa Louis Lucy Luke Margaret Maria Mark Martha Martin Mary Matthew Megan "
  "Michael Mike Nancy Neil Nick Nina Oliver Oscar Pamela Patrick Paul Peter "
  "Philip Rachel Ralph Rebecca Richard Robert Roger Ronald Rosa Roy Ruth Ryan "
  "Sally Sam Sandra Sarah Scott Simon Sophia Stephen Steve Susan Teresa Thomas "
  "Tim Tina Tom Tony Victor Victoria Vincent Walter Wendy William"
).split()

# Things one can own; the plural of each is the word and an "s".
NOUNS = (
  "apron bag ball balloon basket bed bell belt bike blanket boat book bottle "
  "bowl broom bucket button cake camera candle canoe cap car carpet chain "
  "chair clock coat coin comb computer cookie cup curtain desk diamond doll "
  "door drum fan feather flag flute fork garden guitar hammer hat helmet "
  "jacket jar kettle key kite ladder lamp lantern laptop letter map medal "
  "mirror mug nail necklace needle notebook oven paddle painting pan pen "
  "pencil phone piano picture pillow pipe plate pot puzzle quilt radio ring "
  "robot rocket rope ruler saddle scarf shirt shoe shovel skirt sled sock sofa "
  "spoon stamp statue stove table tent ticket towel toy trumpet truck umbrella "
  "vase violin wagon wallet whistle window"
).split()

JOBS = (
  "actor artist baker banker barber builder butcher carpenter chef clerk coach "
  "dancer dentist designer doctor driver editor engineer farmer fisherman "
  "florist gardener hunter judge lawyer librarian mechanic miner model nurse "
  "painter pilot plumber poet porter reporter sailor scientist sculptor singer "
  "soldier surgeon tailor teacher tutor vet waiter writer"
).split()

CAPITALS = {
  "Afghanistan": "Kabul",
  "Argentina": "Buenos Aires",
  "Australia": "Canberra",
  "Austria": "Vienna",
  "Bangladesh": "Dhaka",
  "Belgium": "Brussels",
  "Bulgaria": "Sofia",
  "Canada": "Ottawa",
  "Chile": "Santiago",
  "China": "Beijing",
  "Colombia": "Bogota",
  "Croatia": "Zagreb",
  "Cuba": "Havana",
  "Denmark": "Copenhagen",
  "Ecuador": "Quito",
  "Egypt": "Cairo",
  "England": "London",
  "Ethiopia": "Addis Ababa",
  "Finland": "Helsinki",
  "France": "Paris",
  "Germany": "Berlin",
  "Ghana": "Accra",
  "Greece": "Athens",
  "Hungary": "Budapest",
  "Iceland": "Reykjavik",
  "India": "New Delhi",
  "Indonesia": "Jakarta",
  "Iran": "Tehran",
  "Iraq": "Baghdad",
  "Ireland": "Dublin",
  "Italy": "Rome",
  "Jamaica": "Kingston",
  "Japan": "Tokyo",
  "Jordan": "Amman",
  "Kenya": "Nairobi",
  "Lebanon": "Beirut",
  "Libya": "Tripoli",
  "Malaysia": "Kuala Lumpur",
  "Morocco": "Rabat",
  "Nepal": "Kathmandu",
  "Netherlands": "Amsterdam",
  "Nigeria": "Abuja",
  "Norway": "Oslo",
  "Pakistan": "Islamabad",
  "Peru": "Lima",
  "Poland": "Warsaw",
  "Portugal": "Lisbon",
  "Romania": "Bucharest",
  "Russia": "Moscow",
  "Scotland": "Edinburgh",
  "Serbia": "Belgrade",
  "Spain": "Madrid",
  "Sudan": "Khartoum",
  "Sweden": "Stockholm",
  "Switzerland": "Bern",
  "Syria": "Damascus",
  "Thailand": "Bangkok",
  "Turkey": "Ankara",
  "Ukraine": "Kyiv",
  "Venezuela": "Caracas",
  "Vietnam": "Hanoi",
}

OPPOSITES = tuple(
  pair.split("-")
  for pair in (
    "hot-cold big-small up-down happy-sad fast-slow wet-dry open-closed "
    "early-late full-empty hard-soft high-low rich-poor strong-weak young-old "
    "true-false clean-dirty loud-quiet long-short thick-thin light-dark "
    "inside-outside push-pull win-lose buy-sell begin-end north-south "
    "east-west near-far wide-narrow deep-shallow sharp-dull sweet-sour "
    "brave-cowardly safe-dangerous front-back top-bottom rough-smooth "
    "alive-dead polite-rude smart-stupid war-peace"
  ).split()
)

# Neighbours in a fixed order, cut into pairs so that no word is in two. The
# letters A and I are left out: as words they are an article and a pronoun.
DAYS = (
  ("Monday", "Tuesday"),
  ("Wednesday", "Thursday"),
  ("Friday", "Saturday"),
)
MONTHS = (
  ("January", "February"),
  ("March", "April"),
  ("May", "June"),
  ("July", "August"),
  ("September", "October"),
  ("November", "December"),
)
LETTERS = tuple(zip("CEGKMOQSUWY", "DFHLNPRTVXZ", strict=True))

SOUNDS = {
  "cow": "moo",
  "dog": "bark",
  "cat": "meow",
  "sheep": "baa",
  "pig": "oink",
  "duck": "quack",
  "lion": "roar",
  "snake": "hiss",
  "frog": "croak",
  "bee": "buzz",
  "owl": "hoot",
  "horse": "neigh",
  "rooster": "crow",
  "wolf": "howl",
  "mouse": "squeak",
  "sparrow": "chirp",
  "crow": "caw",
  "turkey": "gobble",
}

COLORS_OF = {
  "snow": "white",
  "milk": "white",
  "salt": "white",
  "cotton": "white",
  "coal": "black",
  "ink": "black",
  "tar": "black",
  "grass": "green",
  "spinach": "green",
  "broccoli": "green",
  "lettuce": "green",
  "blood": "red",
  "ketchup": "red",
  "sky": "blue",
  "chocolate": "brown",
  "mud": "brown",
  "corn": "yellow",
  "mustard": "yellow",
  "butter": "yellow",
  "sunshine": "yellow",
  "ash": "gray",
  "lava": "red",
}

# Thing -> the category it belongs to.
KINDS_OF_THING = {
  word: category
  for category, words in {
    "animal": "dog cat cow horse lion tiger bear rabbit goat sheep monkey "
    "elephant zebra giraffe camel donkey deer fox wolf squirrel",
    "fruit": "apple banana grape pear plum peach cherry mango lemon melon "
    "strawberry pineapple kiwi papaya apricot",
    "vegetable": "carrot potato onion cabbage cucumber celery radish "
    "turnip cauliflower zucchini",
    "bird": "eagle sparrow owl parrot pigeon robin swan penguin falcon crow",
    "fish": "salmon tuna trout cod herring sardine carp",
    "metal": "iron gold silver copper tin zinc steel aluminum",
    "sport": "tennis soccer hockey golf baseball basketball cricket rugby",
  }.items()
  for word in words.split()
}
