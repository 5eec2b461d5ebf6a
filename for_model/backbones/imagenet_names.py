"""What ImageNet's 1,000 classes are called, in words that a sentence encoder understands.

timm carries WordNet's name, synonyms and definition of each class. They were chosen for the noun, not for the
photographs: a few definitions are of another meaning than what the photographs of the class show, and a few names are
used for something else much more often. These are said anew here.
"""

# Class number -> its description, in the form of timm's: names, a colon, a definition.
CORRECTED = {
    21: "kite, bird of prey: a small graceful hawk with long pointed wings",
    97: "drake, male duck: a water bird",
    134: "crane, wading bird: a large bird with a long neck and long legs",
    264: "Cardigan Welsh corgi, corgi: a dog with short legs, large ears and a long tail",
    339: "sorrel, brown horse: a horse of a reddish brown colour",
    456: "bow, bow and arrow: a weapon that shoots arrows",
    472: "canoe: a small light boat moved with a paddle",
    474: "cardigan, knitted jacket: a jacket of wool with buttons",
    517: "construction crane, crane: a tall machine that lifts heavy objects",
    532: "dining table: a table with chairs where meals are served",
    638: "swimsuit, maillot: a woman's one-piece bathing suit",
    639: "swimsuit, tank suit: a woman's one-piece bathing suit",
    657: "missile, rocket: a rocket that carries a warhead",
    664: "monitor, computer screen: the screen of a computer",
    726: "carpenter's plane, woodworking tool: a hand tool for smoothing wood",
    744: "missile, rocket: a rocket that carries a warhead",
    782: "screen, computer screen: the screen of a computer or a television",
    836: "sunglasses: dark glasses against the glare of the sun",
    837: "sunglasses: dark glasses against the glare of the sun",
    923: "plate of food, meal: a meal served on a plate",
    968: "cup, teacup: a small open container to drink tea or coffee from",
    989: "rose hip: the red fruit of a rose plant",
    998: "ear of corn, corn: the yellow fruit of a maize plant",
}


def class_descriptions() -> list[str]:
    """The 1,000 classes in the order of ImageNet's labels: names with commas, a colon, a definition."""
    return [CORRECTED.get(number, text) for number, text in enumerate(wordnet_descriptions())]


def wordnet_descriptions() -> list[str]:
    """As `class_descriptions`, without the corrections."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(number, detailed=True) for number in range(info.num_classes())]
