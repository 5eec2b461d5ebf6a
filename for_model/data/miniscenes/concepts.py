"""What MiniScenes draws: concepts, and the icon-font drawings of each.

A drawing is `font:name`; its styles (filled, outlined) count as one drawing, so that a drawing held back from training
is held back in every style. Fonts, read from the `qtawesome` wheel: `mdi` Material Design Icons 6, `fa` Font Awesome 6
(solid and regular), `ph` Phosphor, `ri` Remix, `co` Codicons.

The names are those of COCO-OVD's 48 base and 17 novel categories (docs/protocol.md) except where the fonts have no
such drawing; `REPLACED` says which name stands in for which.
"""

from dataclasses import dataclass
from typing import Literal

from for_model.data.dataset import Group

Split = Literal["train", "dev", "val"]

# COCO-OVD name -> the name that takes its place here (all are base categories)
REPLACED = {
    "zebra": "rabbit",
    "giraffe": "turtle",
    "frisbee": "guitar",
    "banana": "pear",
    "sandwich": "hamburger",
    "orange": "lemon",
    "broccoli": "corn",
    "donut": "cookie",
    "vase": "flower",
}

_BASE = """
person: mdi:human-male fa:person mdi:human-female mdi:human-handsup ph:person fa:person-dress ri:user
bicycle: mdi:bicycle fa:bicycle ri:bike ph:bicycle
car: mdi:car-side fa:car-side mdi:car-hatchback mdi:car-convertible mdi:car fa:car ph:car ri:car
motorcycle: mdi:motorbike fa:motorcycle ri:motorbike
train: mdi:train fa:train ph:train mdi:train-variant ri:train
truck: mdi:truck fa:truck mdi:dump-truck ph:truck fa:truck-pickup ri:truck
boat: mdi:sail-boat fa:sailboat mdi:ferry ri:sailboat fa:ferry ph:boat
bench: mdi:bench-back mdi:bench
bird: mdi:bird fa:crow mdi:owl ph:bird fa:dove
horse: mdi:horse-variant mdi:horse ph:horse fa:horse
sheep: mdi:sheep
bear: mdi:teddy-bear
rabbit: mdi:rabbit mdi:rabbit-variant
turtle: mdi:turtle mdi:tortoise
backpack: mdi:bag-personal
handbag: ph:handbag mdi:purse ph:tote ri:handbag ph:handbag-simple
suitcase: mdi:bag-suitcase fa:suitcase mdi:briefcase fa:briefcase ph:suitcase ri:suitcase fa:suitcase-rolling
guitar: mdi:guitar-acoustic mdi:guitar-electric fa:guitar
skis: fa:person-skiing fa:person-skiing-nordic mdi:ski
kite: mdi:kite
surfboard: mdi:surfing
bottle: mdi:bottle-wine mdi:bottle-soda mdi:bottle-soda-classic fa:bottle-water fa:wine-bottle
fork: mdi:silverware-fork
spoon: mdi:silverware-spoon fa:spoon
bowl: mdi:bowl-mix fa:bowl-food fa:bowl-rice mdi:bowl
pear: mdi:fruit-pear
apple: mdi:food-apple fa:apple-whole
hamburger: mdi:hamburger fa:burger
lemon: mdi:fruit-citrus fa:lemon
corn: mdi:corn
carrot: mdi:carrot fa:carrot
pizza: mdi:pizza ph:pizza fa:pizza-slice
cookie: mdi:cookie ph:cookie fa:cookie-bite fa:cookie
chair: mdi:chair-rolling fa:chair ph:armchair mdi:chair-school
bed: mdi:bed fa:bed mdi:bed-king ph:bed
toilet: mdi:toilet fa:toilet
tv: mdi:television ph:television mdi:television-classic fa:tv ri:tv
laptop: mdi:laptop ph:laptop fa:laptop
mouse: mdi:mouse fa:computer-mouse ph:mouse ri:mouse
remote: mdi:remote ri:remote-control-2 mdi:remote-tv ri:remote-control
microwave: mdi:microwave
oven: mdi:stove mdi:toaster-oven
toaster: mdi:toaster
refrigerator: mdi:fridge ri:fridge
book: mdi:book-open fa:book-open ph:book mdi:book-open-page-variant fa:book ph:book-open
clock: mdi:clock fa:clock ph:clock mdi:alarm ri:time
flower: mdi:flower ph:flower mdi:flower-tulip mdi:flower-poppy
toothbrush: mdi:toothbrush mdi:toothbrush-electric
"""

_NOVEL = """
airplane: mdi:airplane fa:plane ri:plane fa:jet-fighter ph:airplane
bus: mdi:bus fa:bus ph:bus mdi:bus-side ri:bus
cat: mdi:cat fa:cat ph:cat
dog: mdi:dog mdi:dog-side ph:dog fa:dog
cow: mdi:cow fa:cow
elephant: mdi:elephant
umbrella: mdi:umbrella ph:umbrella ri:umbrella fa:umbrella
tie: mdi:tie
snowboard: mdi:snowboard fa:person-snowboarding
skateboard: mdi:skateboard mdi:skateboarding
cup: mdi:coffee fa:mug-saucer ri:cup fa:mug-hot ph:coffee
knife: mdi:knife ph:knife ri:knife mdi:knife-military
cake: mdi:cake-variant fa:cake-candles mdi:cake-layered mdi:cake ph:cake
couch: mdi:sofa fa:couch
keyboard: mdi:keyboard fa:keyboard ri:keyboard ph:keyboard
sink: mdi:countertop fa:sink
scissors: mdi:content-cut fa:scissors ri:scissors ph:scissors
"""

_WIDE = """
pig: mdi:pig mdi:pig-variant
snake: mdi:snake co:snake
spider: mdi:spider fa:spider
butterfly: mdi:butterfly
fish: mdi:fish ph:fish fa:fish
bee: mdi:bee
ladybug: mdi:ladybug ph:bug-beetle
frog: fa:frog
hippo: fa:hippo
penguin: mdi:penguin
dolphin: mdi:dolphin
shark: mdi:shark
jellyfish: mdi:jellyfish
kangaroo: mdi:kangaroo
koala: mdi:koala
panda: mdi:panda
snail: mdi:snail
duck: mdi:duck
donkey: mdi:donkey
dragon: fa:dragon
unicorn: mdi:unicorn mdi:unicorn-variant
shrimp: fa:shrimp
bat: mdi:bat
mosquito: fa:mosquito
paw: mdi:paw fa:paw ph:paw-print
bone: mdi:bone fa:bone
feather: mdi:feather fa:feather
skull: mdi:skull ri:skull fa:skull
ghost: mdi:ghost ph:ghost ri:ghost fa:ghost
robot: mdi:robot fa:robot ph:robot ri:robot
brain: mdi:brain ph:brain fa:brain
tooth: mdi:tooth fa:tooth
eye: mdi:eye ph:eye ri:eye fa:eye
hand: mdi:hand-front-right fa:hand ph:hand
tree: mdi:tree mdi:pine-tree ph:tree fa:tree
palm tree: mdi:palm-tree
leaf: mdi:leaf ph:leaf ri:leaf fa:leaf
cactus: mdi:cactus ri:cactus
mushroom: mdi:mushroom
snowflake: mdi:snowflake ph:snowflake fa:snowflake
snowman: mdi:snowman fa:snowman
sun: mdi:white-balance-sunny ph:sun ri:sun fa:sun
moon: mdi:moon-waning-crescent ph:moon fa:moon
cloud: mdi:cloud ri:cloud fa:cloud
rainbow: mdi:looks ph:rainbow fa:rainbow
mountain: mdi:image-filter-hdr fa:mountain
volcano: mdi:volcano fa:volcano
fire: mdi:fire fa:fire ph:fire ri:fire
house: mdi:home ph:house ri:home fa:house
castle: mdi:castle fa:chess-rook
church: mdi:church fa:church
tent: mdi:tent fa:tent
lighthouse: mdi:lighthouse
factory: mdi:factory ph:factory fa:industry
bridge: mdi:bridge fa:bridge
stadium: mdi:stadium
barn: mdi:barn
ladder: mdi:ladder
rocket: mdi:rocket ph:rocket ri:rocket fa:rocket
helicopter: mdi:helicopter fa:helicopter
tractor: mdi:tractor fa:tractor
excavator: mdi:excavator
bulldozer: mdi:bulldozer
crane: mdi:crane
ambulance: mdi:ambulance fa:truck-medical
tram: mdi:tram fa:train-tram
scooter: mdi:scooter
submarine: mdi:submarine
hot air balloon: mdi:airballoon
parachute: mdi:parachute fa:parachute-box
balloon: mdi:balloon
anchor: mdi:anchor ph:anchor ri:anchor fa:anchor
traffic light: mdi:traffic-light fa:traffic-light ri:traffic-light
traffic cone: mdi:traffic-cone
fire hydrant: mdi:fire-hydrant
gas pump: mdi:gas-station ph:gas-pump fa:gas-pump
wheelchair: mdi:wheelchair ph:wheelchair fa:wheelchair
baby carriage: mdi:baby-carriage fa:baby-carriage
hammer: mdi:hammer ri:hammer fa:hammer
wrench: mdi:wrench ph:wrench fa:wrench
screwdriver: mdi:screwdriver fa:screwdriver
saw: mdi:hand-saw mdi:circular-saw
axe: mdi:axe
shovel: mdi:shovel
broom: mdi:broom fa:broom
bucket: mdi:bucket fa:bucket
lamp: mdi:lamp mdi:floor-lamp mdi:desk-lamp ph:lamp
light bulb: mdi:lightbulb ph:lightbulb ri:lightbulb fa:lightbulb
candle: mdi:candle
key: mdi:key ph:key ri:key fa:key
lock: mdi:lock ph:lock fa:lock
bell: mdi:bell ph:bell fa:bell
crown: mdi:crown ph:crown fa:crown
hat: mdi:hat-fedora fa:hat-cowboy
shirt: mdi:tshirt-crew ph:t-shirt ri:t-shirt fa:shirt
shoe: mdi:shoe-sneaker mdi:shoe-formal mdi:shoe-cleat
sock: fa:socks
glasses: mdi:glasses fa:glasses
watch: mdi:watch ph:watch
ring: mdi:ring fa:ring
diamond: mdi:diamond-stone ri:vip-diamond fa:gem
camera: mdi:camera ph:camera ri:camera fa:camera
telephone: mdi:phone ph:phone fa:phone
cell phone: mdi:cellphone ph:device-mobile fa:mobile-screen
headphones: mdi:headphones ph:headphones fa:headphones
microphone: mdi:microphone ph:microphone fa:microphone
violin: mdi:violin
trumpet: mdi:trumpet
saxophone: mdi:saxophone
drum: fa:drum
piano: mdi:piano co:piano
microscope: mdi:microscope ri:microscope fa:microscope
telescope: mdi:telescope co:telescope
binoculars: mdi:binoculars fa:binoculars
stethoscope: mdi:stethoscope ri:stethoscope fa:stethoscope
syringe: mdi:needle ri:syringe fa:syringe
magnet: mdi:magnet ph:magnet fa:magnet
globe: mdi:globe-model ph:globe-stand fa:globe
pencil: mdi:pencil ph:pencil fa:pencil
brush: mdi:brush ph:paint-brush fa:paintbrush
palette: mdi:palette ph:palette fa:palette
calculator: mdi:calculator ph:calculator fa:calculator
printer: mdi:printer ph:printer fa:print
battery: mdi:battery ri:battery fa:battery-full
envelope: mdi:email ph:envelope fa:envelope
newspaper: mdi:newspaper ph:newspaper fa:newspaper
gift: mdi:gift ph:gift ri:gift fa:gift
trophy: mdi:trophy ph:trophy ri:trophy fa:trophy
medal: mdi:medal ph:medal fa:medal
flag: mdi:flag-variant ph:flag fa:flag
soccer ball: mdi:soccer ph:soccer-ball fa:futbol
basketball: mdi:basketball ph:basketball fa:basketball
football: mdi:football ph:football fa:football
dumbbell: mdi:dumbbell ph:barbell fa:dumbbell
dice: mdi:dice-5 ph:dice-five fa:dice
puzzle: mdi:puzzle ph:puzzle-piece fa:puzzle-piece
game controller: mdi:gamepad-variant ph:game-controller fa:gamepad
chess knight: mdi:chess-knight fa:chess-knight
sword: mdi:sword ph:sword ri:sword
shield: mdi:shield ph:shield ri:shield fa:shield
bomb: mdi:bomb fa:bomb
shopping cart: mdi:cart ph:shopping-cart fa:cart-shopping
basket: mdi:basket fa:basket-shopping
trash can: mdi:trash-can ph:trash fa:trash
bathtub: mdi:bathtub fa:bath
shower: mdi:shower-head ph:shower fa:shower
door: mdi:door ph:door fa:door-open
washing machine: mdi:washing-machine
vacuum cleaner: mdi:vacuum
kettle: mdi:kettle
blender: mdi:blender fa:blender
wine glass: mdi:glass-wine ph:wine fa:wine-glass
beer: mdi:beer fa:beer-mug-empty
cocktail: mdi:glass-cocktail ph:martini fa:martini-glass
ice cream: mdi:ice-cream fa:ice-cream
egg: mdi:egg-fried fa:egg
bread: mdi:bread-slice fa:bread-slice
croissant: mdi:food-croissant
cheese: mdi:cheese fa:cheese
hot dog: mdi:food-hot-dog fa:hotdog
taco: mdi:taco
popcorn: mdi:popcorn
candy: mdi:candy
grapes: mdi:fruit-grapes
cherries: mdi:fruit-cherries
pineapple: mdi:fruit-pineapple
watermelon: mdi:fruit-watermelon
pepper: mdi:chili-mild fa:pepper-hot
pumpkin: mdi:pumpkin
scale: mdi:scale-balance ph:scales fa:scale-balanced
hourglass: mdi:timer-sand ph:hourglass fa:hourglass
"""


@dataclass(frozen=True)
class Concept:
    """A noun and its drawings, in the order in which they are given out to the splits.

    The last drawing belongs to val alone (the last two where there are five or more), the one before to dev alone
    where there are three or more; the others are drawn everywhere. A concept with one drawing shares it.
    """

    name: str
    group: Group
    drawings: tuple[str, ...]

    @property
    def n_val_only(self) -> int:
        n = len(self.drawings)
        return 2 if n >= 5 else int(n >= 2)

    def shared(self) -> tuple[str, ...]:
        """The drawings that every split shows, training among them."""
        n = len(self.drawings)
        return self.drawings[: n - self.n_val_only - int(n >= 3)]

    def held_back(self, split: Split) -> tuple[str, ...]:
        """The drawings that only `split` shows; empty for train and for concepts with too few drawings."""
        n = len(self.drawings)
        if split == "val":
            return self.drawings[n - self.n_val_only :]
        if split == "dev" and n >= 3:
            return self.drawings[n - self.n_val_only - 1 : n - self.n_val_only]
        return ()


def _parse(table: str, group: Group) -> tuple[Concept, ...]:
    rows = (line.split(":", 1) for line in table.strip().splitlines())
    return tuple(Concept(name, group, tuple(drawings.split())) for name, drawings in rows)


CONCEPTS: tuple[Concept, ...] = _parse(_BASE, "base") + _parse(_NOVEL, "novel") + _parse(_WIDE, "other")
