"""The chosen subjects: caption name to emoji short name, what each may do, which are held out."""

from __future__ import annotations

from dataclasses import dataclass

STYLES: dict[str, str] = {"glossy": "google", "flat": "twitter"}
"""Style word of the captions to vendor of the pictures."""

_ANIMALS = """
dog=dog2 dog_face=dog cat=cat2 cat_face=cat monkey=monkey_face fox=fox_face lion=lion_face
tiger horse unicorn=unicorn_face zebra=zebra_face cow=cow2 pig camel giraffe=giraffe_face
elephant mouse rabbit bear koala panda=panda_face chick=baby_chick bird penguin
swan owl flamingo peacock frog crocodile turtle snake dinosaur=sauropod whale
fish octopus crab jellyfish snail butterfly bee ladybug spider
"""

_THINGS = """
rose sunflower tulip flower=cherry_blossom tree=deciduous_tree pine=evergreen_tree palm=palm_tree
cactus clover=four_leaf_clover leaf=maple_leaf mushroom
grapes watermelon lemon banana pineapple apple pear strawberry
tomato avocado eggplant carrot corn broccoli croissant pretzel cheese=cheese_wedge hamburger
fries pizza hotdog cone=icecream donut=doughnut cupcake lollipop beer
globe=earth_americas volcano temple=classical_building building=office house castle=european_castle
church tent statue=moyai bus car truck=articulated_lorry tractor bicycle=bike
anchor sailboat=boat airplane helicopter rocket hourglass clock=alarm_clock
moon=crescent_moon sun=sun_with_face planet=ringed_planet star cloud rainbow umbrella lightning=zap
snowflake snowman=snowman_without_snow fire drop=droplet
pumpkin=jack_o_lantern balloon gift trophy baseball basketball target=dart
kite teddy=teddy_bear heart=hearts yarn
glasses=eyeglasses jeans backpack=school_satchel shoe=mans_shoe crown hat=tophat
ring diamond=gem bell guitar drum=drum_with_drumsticks camera candle bulb
book=closed_book envelope=email pencil=pencil2 scissors key hammer bomb shield magnet
door chair bucket=bucket
"""

_HELD_OUT = """
poodle=poodle:dog guide_dog=guide_dog:dog black_cat=black_cat:cat racehorse=racehorse:horse
polar_bear=polar_bear:bear tropical_fish=tropical_fish:fish white_rabbit=rabbit2:rabbit
tyrannosaur=t-rex:dinosaur blackbird=black_bird:bird hatchling=hatching_chick:chick
liberty=statue_of_liberty:statue ruin=derelict_house_building:house pagoda=japanese_castle:castle
police_car=police_car:car mantel_clock=mantelpiece_clock:clock sun_hat=womans_hat:hat
high_heel=high_heel:shoe hibiscus=hibiscus:flower banjo=banjo:guitar fire_engine=fire_engine:truck
"""


@dataclass(frozen=True)
class Subject:
    """One thing that a scene can show.

    `name` is the caption's wording, `short_name` the entry of `emoji.json`, `sits` whether the
    captions may say "sitting", and `noun` the class word: the name itself, or, for a held-out
    subject, the trained subject that it is a kind of.
    """

    name: str
    short_name: str
    noun: str
    sits: bool = False


def _parse(text: str, sits: bool) -> tuple[Subject, ...]:
    found = []
    for entry in text.split():
        name, _, rest = entry.partition("=")
        short, _, noun = (rest or name).partition(":")
        plain = name.replace("_", " ")
        found.append(Subject(plain, short, noun or plain, sits))
    return tuple(found)


TRAINED: tuple[Subject, ...] = _parse(_ANIMALS, True) + _parse(_THINGS, False)
"""The subjects of every training scene."""

HELD_OUT: tuple[Subject, ...] = _parse(_HELD_OUT, False)
"""The subjects that no training scene shows and no caption names: personalization learns them."""


def names() -> tuple[str, ...]:
    """The caption names of the trained subjects, in order."""
    return tuple(subject.name for subject in TRAINED)
