"""The embedded utterances: what people ask a household assistant, made from templates and a seed.

Each intent has a few sentence patterns whose slots are filled at random; some words are common to
several intents, so single words do not give the answer away; some are left out or mistyped. `oos`
asks for what no intent covers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

SLOTS = {
    "room": "kitchen|bedroom|hall|living room|bathroom|office|garage",
    "time": "six|half past seven|noon|ten tonight|eight tomorrow|sunrise|a quarter to five",
    "day": "today|tomorrow|monday|this weekend|friday night|next week",
    "song": "blue moon|the long road|autumn leaves|seven rivers|paper planes|northern lights",
    "person": "anna|my brother|doctor lee|the office|grandma|omar|the landlord",
    "place": "the airport|work|the station|home|the museum|my hotel|the beach",
    "food": "rice|two lemons|bread|oat milk|a dozen eggs|coffee beans|tomatoes",
    "money": "ten euros|fifty dollars|the rent|twenty pounds|last month's bill",
    "thing": "the window|my order|the lamp|the heating|the front door|that invoice",
}
INTENTS = {
    "light_on": (
        "turn the {room} light on|make it brighter in the {room}|lights on in the {room}|"
        "need the {room} lamp"
    ),
    "light_off": (
        "turn the {room} light off|make it dark in the {room}|lights out in the {room}|"
        "kill the {room} lamp"
    ),
    "warmer": (
        "turn the heating up in the {room}|i am cold in the {room}|make the {room} warmer|"
        "more heat by {time}"
    ),
    "cooler": (
        "turn the {room} heating down|i am too hot in the {room}|make the {room} cooler|"
        "less heat by {time}"
    ),
    "alarm_set": (
        "wake me at {time}|set an alarm for {time}|i must be up at {time} {day}|"
        "alarm {day} at {time}"
    ),
    "alarm_stop": (
        "do not wake me {day}|cancel the alarm at {time}|no alarm {day}|stop the alarm for {time}"
    ),
    "play": "play {song}|put {song} on in the {room}|i want to hear {song}|start {song} at {time}",
    "stop_music": "stop {song}|no more music in the {room}|turn {song} off|be quiet in the {room}",
    "call": (
        "call {person}|ring {person} at {time}|get {person} on the phone|i want to talk to {person}"
    ),
    "message": (
        "tell {person} i am late|send {person} a note on {thing}|"
        "write to {person} about {song}|text {person}"
    ),
    "weather": (
        "will it rain {day}|how cold is it {day} at {place}|do i need a coat {day}|"
        "the weather at {place}"
    ),
    "traffic": (
        "how long to {place}|is the road to {place} free {day}|traffic to {place}|"
        "how late will i be at {place}"
    ),
    "route": (
        "take me to {place}|how do i get to {place}|which way to {place} by {time}|"
        "show the road to {place}"
    ),
    "list_add": "we need {food}|put {food} on the list|buy {food} {day}|add {food} for {person}",
    "list_remove": (
        "we have {food}|take {food} off the list|no more {food}|forget {food} for {person}"
    ),
    "pay": (
        "pay {money} to {person}|send {person} {money}|transfer {money} {day}|"
        "give {person} {money} for {food}"
    ),
    "balance": (
        "how much is left after {money}|can i afford {money} {day}|what is on my account|"
        "do i have {money}"
    ),
    "lock": "lock {thing}|close {thing} at {time}|is {thing} shut|shut {thing} in the {room}",
    "repair": (
        "{thing} is broken|who can fix {thing} {day}|{thing} in the {room} does not work|"
        "get {thing} repaired"
    ),
    "remind": (
        "remind me of {thing} {day}|never let me forget {food}|remind me to call {person}|"
        "note {thing} {day}"
    ),
    "oos": (
        "who wrote {song}|how tall is {person}|translate {food} for me|"
        "what does {thing} mean|tell me a joke {day}"
    ),
}
BEFORE = ("", "", "", "please", "hey", "could you", "i said", "well")
AFTER = ("", "", "", "please", "now", "thanks", "if you can")
LEFT_OUT = 0.2  # share of the words
MISTYPED = 0.15  # share of the words


def utterances(per_intent: int = 150, seed: int = 0) -> list[tuple[str, str]]:
    """Returns (text, intent) pairs without copies, up to `per_intent` of each, in random order.

    The same on every machine: numpy has frozen RandomState's stream.
    """
    rng = np.random.RandomState(seed)

    def pick(options: Sequence[str]) -> str:
        return options[rng.randint(len(options))]

    def filled(slot: re.Match) -> str:
        return pick(SLOTS[slot[1]].split("|"))

    def typed(word: str) -> str:
        """Returns a word as people type it: some are left out, some lack a letter."""
        chance = rng.rand()
        if chance < LEFT_OUT:
            return ""
        i = rng.randint(len(word))
        return word[:i] + word[i + 1 :] if chance < LEFT_OUT + MISTYPED else word

    intents: dict[str, str] = {}  # text -> intent
    for intent, patterns in INTENTS.items():
        for _ in range(per_intent):
            text = re.sub(r"{(\w+)}", filled, pick(patterns.split("|")))
            words = f"{pick(BEFORE)} {text} {pick(AFTER)}".split()
            utterance = " ".join(" ".join(map(typed, words)).split())
            intents.setdefault(utterance, intent)
    found = [(text, intent) for text, intent in intents.items() if text]
    return [found[i] for i in rng.permutation(len(found))]
