"""The loop's prompts: subjects asked about in four ways. Those that judge share no subject with the others.

No two ways ask for the same thing, and none says anything about style, which is what the annotators have a taste in.
"""

from __future__ import annotations

ASKED = (
    "What should I know about {}?",
    "Describe {} to somebody who has never come across it.",
    "Write a short note to a friend about {}.",
    "Why do people care about {}?",
)
LABELLED_SUBJECTS = (
    "baking bread at home",
    "a walk in the rain",
    "the first snow of the winter",
    "learning to swim as an adult",
    "a market early in the morning",
    "keeping bees",
    "moving to another town",
    "an old bicycle",
    "planting an apple tree",
    "a night train",
    "writing letters by hand",
    "a visit to the dentist",
    "cooking for many guests",
    "a lighthouse",
    "singing in a choir",
    "the smell of coffee",
    "mending torn clothes",
    "a long queue at the post office",
    "a dog from a shelter",
    "the last day at school",
    "a garden behind the house",
    "learning a foreign language",
    "a power cut",
    "camping by a lake",
    "sharing a flat",
    "a library on a Sunday",
    "getting up early",
    "a football match in the park",
    "a broken window",
    "the sound of the sea",
    "saving money for a journey",
    "a birthday far from home",
    "painting a wall",
    "a neighbour who plays the piano",
    "picking mushrooms",
    "a road through the mountains",
    "waiting for news",
    "a small museum",
    "repairing a radio",
    "a thunderstorm in summer",
)
JUDGING_SUBJECTS = (
    "a ferry across the river",
    "making soup from leftovers",
    "a grandfather's watch",
    "the first week in a new job",
    "growing tomatoes on a balcony",
    "a cat that comes and goes",
    "learning to play the guitar",
    "a bridge in the fog",
    "a picnic in spring",
    "losing a set of keys",
    "an evening without a telephone",
    "a shop that sells old books",
    "running a first marathon",
    "a bus driver in a small town",
    "building a kite",
    "the quiet after a holiday",
    "a new pair of glasses",
    "watching birds in a city",
    "a letter that came too late",
    "dancing at a wedding",
    "a frozen pond",
    "cleaning out a cellar",
    "a bakery at night",
    "crossing a border on foot",
)


def asked_about(subjects: tuple[str, ...]) -> list[str]:
    """Every way of asking about each subject."""
    return [way.format(subject) for subject in subjects for way in ASKED]
