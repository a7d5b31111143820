"""Session ids that people can read, say and type: amber-falcon-42."""

from __future__ import annotations

import random

# No word is another with one letter changed, and none is easily misheard.
_FIRST = (
    "amber azure brisk bright calm cedar clear copper coral crisp dapper eager early fabled gentle golden granite "
    "hazel honest ivory jolly keen kind lilac lively lucid mellow misty modest noble olive opal patient pearl plain "
    "polite proud quiet rapid rustic sandy scarlet serene silver sleek smooth solar sober spruce steady sunny swift "
    "tidal topaz tranquil upbeat velvet vivid warm willow witty woven young zesty"
)
_SECOND = (
    "alpaca badger beaver bison bobcat canary caribou cheetah condor cougar coyote cricket dolphin donkey eagle "
    "falcon ferret finch gazelle gecko giraffe gopher hamster heron hornet husky ibis jackal jaguar kestrel koala "
    "lemur leopard lizard llama lobster magpie marmot meerkat mongoose narwhal ocelot octopus osprey otter panda "
    "parrot pelican penguin puffin python quail rabbit raccoon raven salmon sparrow squirrel toucan turtle walrus "
    "weasel wombat zebra"
)


def draw(rng: random.Random) -> str:
    """One of 368,640 ids; who draws makes sure that it is not taken."""
    return f"{rng.choice(_FIRST.split())}-{rng.choice(_SECOND.split())}-{rng.randint(10, 99)}"
