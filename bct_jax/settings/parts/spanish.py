"""Tells English from Spanish by a small dictionary of both.

No word here is spelled alike in both languages, accents aside; a test checks
the tables for it.
"""

import functools
from collections.abc import Collection
from typing import Literal

from bct_jax.settings.parts import scorers

# English = Spanish : grammatical gender. Plurals are regular in both.
THINGS = {
  english: (spanish, gender)
  for english, spanish, gender in (
    entry.replace(":", "=").split("=")
    for entry in (
      "cup=taza:f plate=plato:m spoon=cuchara:f bowl=cuenco:m pot=olla:f "
      "bottle=botella:f box=caja:f bag=bolsa:f basket=cesta:f bucket=cubo:m "
      "chair=silla:f table=mesa:f bed=cama:f lamp=lámpara:f door=puerta:f "
      "window=ventana:f key=llave:f lock=cerradura:f mirror=espejo:m "
      "clock=reloj:m candle=vela:f blanket=manta:f pillow=almohada:f "
      "towel=toalla:f sheet=sábana:f rug=alfombra:f curtain=cortina:f "
      "drawer=cajón:m shirt=camisa:f skirt=falda:f dress=vestido:m "
      "coat=abrigo:m hat=sombrero:m shoe=zapato:m boot=bota:f glove=guante:m "
      "sock=calcetín:m belt=cinturón:m button=botón:m ring=anillo:m "
      "necklace=collar:m ball=pelota:f doll=muñeca:f kite=cometa:f "
      "toy=juguete:m drum=tambor:m bell=campana:f diary=diario:m "
      "notebook=cuaderno:m pencil=lápiz:m pen=bolígrafo:m envelope=sobre:m "
      "stamp=sello:m newspaper=periódico:m painting=cuadro:m photo=foto:f "
      "coin=moneda:f ticket=billete:m wallet=cartera:f suitcase=maleta:f "
      "umbrella=paraguas:m hammer=martillo:m nail=clavo:m saw=sierra:f "
      "shovel=pala:f rope=cuerda:f ladder=escalera:f hook=gancho:m "
      "engine=motor:m car=coche:m truck=camión:m scooter=patinete:m "
      "boat=barco:m rocket=cohete:m train=tren:m wagon=carro:m flag=bandera:f "
      "tent=tienda:f stone=piedra:f brick=ladrillo:m flower=flor:f "
      "tree=árbol:m branch=rama:f seed=semilla:f apple=manzana:f pear=pera:f "
      "orange=naranja:f lemon=limón:m grape=uva:f cherry=cereza:f "
      "peach=melocotón:m plum=ciruela:f strawberry=fresa:f onion=cebolla:f "
      "carrot=zanahoria:f nut=nuez:f egg=huevo:m cake=pastel:m "
      "cookie=galleta:f dog=perro:m cat=gato:m horse=caballo:m mule=mula:f "
      "pig=cerdo:m goat=cabra:f rabbit=conejo:m duck=pato:m chicken=pollo:m "
      "bird=pájaro:m frog=rana:f snake=serpiente:f turtle=tortuga:f "
      "bear=oso:m donkey=burro:m monkey=mono:m whale=ballena:f shark=tiburón:m "
      "wasp=avispa:f ant=hormiga:f beetle=escarabajo:m butterfly=mariposa:f "
      "snail=caracol:m eagle=águila:f owl=búho:m rooster=gallo:m "
      "squirrel=ardilla:f needle=aguja:f brush=cepillo:m comb=peine:m "
      "broom=escoba:f tray=bandeja:f jug=jarra:f fork=tenedor:m pan=sartén:f "
      "oven=horno:m shelf=estante:m medal=medalla:f sword=espada:f "
      "shield=escudo:m arrow=flecha:f feather=pluma:f shell=concha:f "
      "crown=corona:f map=mapa:m"
    ).split()
  )
}

# Words for translation beside the things; none has the Spanish word of another.
OTHER_WORDS = {
  entry.partition("=")[0]: entry.partition("=")[2]
  for entry in (
    "smoke=humo milk=leche salt=sal sugar=azúcar rice=arroz "
    "meat=carne cheese=queso butter=mantequilla oil=aceite soup=sopa "
    "fire=fuego dust=polvo wind=viento rain=lluvia snow=nieve ice=hielo "
    "cloud=nube sun=sol moon=luna sky=cielo sea=mar valley=valle lake=lago "
    "island=isla field=campo forest=bosque beach=playa desert=desierto "
    "street=calle bridge=puente town=pueblo cottage=cabaña country=país "
    "tower=torre castle=castillo farm=granja market=mercado "
    "ceiling=techo night=noche morning=mañana evening=tarde roof=tejado "
    "month=mes "
    "floor=suelo century=siglo summer=verano thunder=trueno spring=primavera "
    "baby=bebé woman=mujer boy=niño girl=niña father=padre mother=madre "
    "brother=hermano sister=hermana friend=amigo neighbor=vecino king=rey "
    "queen=reina soldier=soldado teacher=maestro baker=panadero "
    "farmer=granjero tailor=sastre painter=pintor sailor=marinero "
    "head=cabeza thumb=pulgar eye=ojo ear=oreja nose=nariz mouth=boca "
    "tooth=diente finger=dedo arm=brazo leg=pierna back=espalda heart=corazón "
    "blood=sangre bone=hueso skin=piel hair=pelo wood=madera gold=oro "
    "silver=plata iron=hierro glass=vidrio root=raíz cloth=tela wool=lana "
    "silk=seda leather=cuero work=trabajo game=juego song=canción "
    "word=palabra name=nombre story=cuento dream=sueño joy=alegría "
    "fear=miedo peace=paz war=guerra luck=suerte truth=verdad lie=mentira "
    "health=salud life=vida death=muerte light=luz shadow=sombra "
    "winner=ganador thief=ladrón gift=regalo"
  ).split()
}
# English = masculine plural, feminine plural.
COLORS = {
  "red": ("rojos", "rojas"),
  "white": ("blancos", "blancas"),
  "black": ("negros", "negras"),
  "yellow": ("amarillos", "amarillas"),
  "green": ("verdes", "verdes"),
  "blue": ("azules", "azules"),
  "gray": ("grises", "grises"),
  "brown": ("marrones", "marrones"),
  "purple": ("morados", "moradas"),
}

# Where something is.
PLACES = {
  "kitchen": "en la cocina",
  "garden": "en el jardín",
  "bedroom": "en el dormitorio",
  "school": "en la escuela",
  "office": "en la oficina",
  "library": "en la biblioteca",
  "basement": "en el sótano",
  "attic": "en el desván",
  "bathroom": "en el baño",
  "yard": "en el patio",
}

# Both words of a pair are in one pool, that of the first English one.
OPPOSITES = tuple(
  tuple(tuple(word.split("=")) for word in pair.split("-"))
  for pair in (
    "big=grande-small=pequeño hot=caliente-cold=frío long=largo-short=corto "
    "new=nuevo-old=viejo fast=rápido-slow=lento clean=limpio-dirty=sucio "
    "full=lleno-empty=vacío rich=rico-poor=pobre strong=fuerte-weak=débil "
    "happy=feliz-sad=triste wide=ancho-narrow=estrecho hard=duro-soft=blando "
    "high=alto-low=bajo cheap=barato-expensive=caro young=joven-aged=anciano "
    "early=temprano-late=tarde near=cerca-far=lejos good=bueno-bad=malo "
    "open=abierto-closed=cerrado dry=seco-wet=mojado heavy=pesado-light=ligero "
    "easy=fácil-difficult=difícil thick=grueso-thin=delgado"
  ).split()
)

# Numbers in words, of both languages.
NUMBERS = frozenset(
  "two three four five six seven eight nine ten eleven twelve thirteen "
  "fourteen "
  "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty "
  "seventy eighty ninety dos tres cuatro cinco seis siete ocho nueve diez once "
  "doce trece catorce quince dieciseis diecisiete dieciocho diecinueve veinte "
  "treinta cuarenta cincuenta sesenta setenta ochenta noventa".split()
)

Language = Literal["en", "es"]

# Words that show a language whatever is talked about. "No", "a", "me", "he"
# and "once" are words of both.
_ENGLISH = frozenset(
  "the of and is are was were to in on at with for it this that they their his "
  "her you your i we she what which where how many does do have having who "
  "from by an be opposite there located if would can will not my has "
  "not's word answer into some any but or as them these those its it's they're "
  "according based information provided statement given question sentence "
  "colored currently inside belong belongs belonging owns own owner person "
  "place room found kept stored been being had number both all each "
  "because since so when then also only just here one's than more would could "
  "should sure yes please help let know means called that's there's i'm "
  "i'd i'll i've say ones two three four five six seven eight nine ten twelve "
  "hundred twenty "
  "thirty forty fifty sixty seventy eighty ninety eleven thirteen fourteen "
  "fifteen sixteen seventeen eighteen nineteen "
  "antonym cold warm cool fresh young wet damp deep shallow sick healthy "
  "bright loud quiet slow quick walnuts grey beige tan dark object".split()
)
_SPANISH = frozenset(
  "el la los las un una unos unas de del y es son era esta estan está en con "
  "por para su sus que cual donde cuantos cuantas quien tiene tienen hay lo al "
  "mi tu yo ella ellos se le contrario palabra respuesta muy pero como "
  "este esos esa ese si ser fue gracias hola aqui puedo ayudar "
  "segun encuentra encuentran ubicado ubicada ubicados ubicadas dueno duena "
  "posee poseen claro supuesto opuesto antonimo seria sino porque cuando "
  "tambien solo entonces enunciado frase oracion pregunta informacion dado "
  "dicho dice indica menciona ambos cada uno dos tres cuatro cinco seis "
  "siete ocho nueve diez doce veinte treinta cuarenta cincuenta sesenta "
  "setenta "
  "ochenta noventa ciento catorce quince trece dieciseis diecisiete "
  "dieciocho diecinueve anaranjados cafe cafes castano castanos calor "
  "calido fresco humedo joven moderno pertenece pertenecen guardados guardadas "
  "dentro ahi alli estos estas esas aquellos nuestro ustedes usted nosotros "
  "siento ayudarte saber mas algo".split()
)
# Words of either language that say nothing of what is talked about.
COMMON = _ENGLISH | _SPANISH


def plural(word: str) -> str:
  """Returns the regular plural of an English noun."""
  if word.endswith(("s", "x", "ch", "sh")):
    return word + "es"
  if word.endswith("y") and word[-2] not in "aeiou":
    return word[:-1] + "ies"
  return "shelves" if word == "shelf" else word + "s"


def plural_es(word: str) -> str:
  """Returns the regular plural of a Spanish noun.

  A stress on the last syllable loses its accent: "cajón", "cajones".
  """
  if word.endswith("s"):
    return word
  if word.endswith("z"):
    return word[:-1] + "ces"
  if word[-1] in "aeiouáéó":
    return word + "s"
  for stressed, bare in (("ón", "on"), ("én", "en"), ("ín", "in")):
    if word.endswith(stressed):
      return word[: -len(stressed)] + bare + "es"
  return word + "es"


def article(gender: str) -> str:
  """Returns the plural definite article of a gender."""
  return "las" if gender == "f" else "los"


@functools.cache
def dictionary() -> dict[str, str]:
  """Returns English word -> Spanish word, each once on either side."""
  pairs = {english: spanish for english, (spanish, _) in THINGS.items()}
  return {**pairs, **OTHER_WORDS}


@functools.cache
def vocabulary(language: Language) -> frozenset[str]:
  """Returns all folded words of a language that are known here."""
  if language == "en":
    texts = [*_ENGLISH, *THINGS, *map(plural, THINGS), *OTHER_WORDS]
    texts += [*COLORS, *PLACES, *(e for pair in OPPOSITES for e, _ in pair)]
  else:
    texts = [*_SPANISH, *(s for s, _ in THINGS.values()), *OTHER_WORDS.values()]
    texts += [plural_es(s) for s, _ in THINGS.values()]
    for forms in COLORS.values():
      # "rojo" and "azul", too.
      texts += [*forms, *(f[:-1] for f in forms), *(f[:-2] for f in forms)]
    texts += [*PLACES.values(), *(s for pair in OPPOSITES for _, s in pair)]
  return frozenset(
    word for text in texts for word in scorers.words(scorers.fold_case(text))
  )


def language_of(
  text: str, topical: Collection[str]
) -> Literal["en", "es", "both", "neither"]:
  """Finds the language of a text that is about something.

  It is the one with at least twice as many known words as the other, if at
  least two fifths of the words, numbers aside, are known in it and one of all
  is topical. A text in which each language has a third of the words is both.

  Args:
    text: not malformed.
    topical: folded words, of either language, or numbers, of which one must
      occur.
  """
  tokens = scorers.words(scorers.fold_case(text))
  if not any(w in topical for w in tokens):
    return "neither"
  counts = {
    language: sum(w in vocabulary(language) for w in tokens)
    for language in ("en", "es")
  }
  if min(counts.values()) * 3 >= len(tokens):
    return "both"
  num_words = sum(not w.isdigit() for w in tokens)
  pairs: tuple[tuple[Language, Language], ...] = (("en", "es"), ("es", "en"))
  for language, other in pairs:
    count = counts[language]
    if count and count >= 2 * counts[other] and 5 * count >= 2 * num_words:
      return language
  return "neither"
