"""Head, tail or everything? What a probe has shown, weighed by a few rules that are written down here.

The tutorial's chapter on transfer learning asks two questions, and so do these rules: are there many photos, and do they look
like those that the network has learned from? More of the network is advised only where more photos carry it, so that
fewer photos never lead to more of it.

                 unlike ImageNet's      like ImageNet's
few photos       head                   head
some             tail                   tail
many             all                    tail
"""

import shlex
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

from ikebana.choices import Trained
from ikebana.learning.forecast import FEW, duration
from ikebana.learning.probe import Evidence, Score

MANY = (
    200  # training photos of a class from which on more of the network may learn; with 80 it did not pay (docs/log.md)
)
AS_GOOD = 0.02  # of accuracy: an earlier cut that surely comes this near to the last one tells as much
NEARLY_ALL = 0.99  # accuracy of a head that leaves nothing to gain
ERRORS = 2  # standard errors that chance seldom exceeds
JUDGED = 100  # photos, below which an accuracy is known to five points at best
CLOSE = 1.5  # times a threshold: nearer than this, the other side of it may be right
WIDTH = 100  # characters a line

STRONGER: dict[Trained, str] = {"head": "quick", "tail": "good", "all": "best"}  # the recipe that comes nearest to that
IN_WORDS: dict[Trained, str] = {
    "head": "a new head on the frozen network is enough",
    "tail": "let the network's last stages learn too",
    "all": "let larger networks learn, and for longer",
}


@dataclass(frozen=True)
class Supply:
    """How many photos there are to learn from."""

    photos: int  # training photos, and validation photos for choices
    sealed: int  # test photos, which nobody looked at
    a_class: int  # training photos: half of the classes have at least so many
    smallest: tuple[str, int]  # the class with the fewest training photos, and how many


@dataclass(frozen=True)
class Advice:
    """How much of the network should learn from these photos, and why."""

    trained: Trained
    reasons: tuple[str, ...]
    doubts: tuple[str, ...]  # none: fairly sure
    more_photos: str  # whether they would help
    supply: Supply
    evidence: Evidence
    photos: str = ""  # where they lie, for the command
    costs: dict[str, float] = field(default_factory=dict)  # about how many seconds a recipe takes here, where known

    @property
    def recipe(self) -> str:
        """The named recipe that does it."""
        return STRONGER[self.trained]

    @property
    def command(self) -> str:
        """What to type."""
        return f"ikebana fit {shlex.quote(self.photos or 'PHOTOS')} --recipe {self.recipe}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return asdict(self) | {"recipe": self.recipe, "command": self.command}

    def __repr__(self) -> str:
        cost = f"    (about {duration(self.costs[self.recipe])} here)" if self.recipe in self.costs else ""
        told = [
            *(("why", each) for each in self.reasons),
            ("more", self.more_photos),
            *(("doubt", each) for each in self.doubts),
            ("sure", "not very" if self.doubts else "fairly"),
        ]
        lines = [line for name, text in told for line in _wrapped(name, text)]
        run = f"  run    {self.command}{cost}"  # never wrapped: it is to be copied
        return "\n".join([f"Advice: {IN_WORDS[self.trained]}", "", *_table(self), "", *lines, run])


def advised(evidence: Evidence, supply: Supply, photos: str, costs: dict[str, float]) -> Advice:
    """The advice that follows from the evidence.

    photos  where they lie, for the command
    costs   about how many seconds recipes take here
    """
    trained = how_much(evidence, supply)
    return Advice(
        trained,
        tuple(_reasons(evidence, supply, trained)),
        tuple(_doubts(evidence, supply)),
        _more_photos(evidence),
        supply,
        evidence,
        photos,
        costs,
    )


def how_much(evidence: Evidence, supply: Supply) -> Trained:
    """The rules. Fewer photos, or evidence from fewer of them, never give more of the network."""
    if supply.a_class < FEW or _nothing_to_gain(evidence):
        return "head"
    return "all" if _unlike(evidence) and supply.a_class >= MANY else "tail"


def _nothing_to_gain(evidence: Evidence) -> bool:
    """Whether a head is right as often as anybody could tell from so many photos."""
    return evidence.best.value >= NEARLY_ALL or evidence.best.value + ERRORS * evidence.best.error >= 1


def _unlike(evidence: Evidence) -> bool:
    """Whether an earlier cut surely tells as much as the last: what the network knows of whole things does not apply."""
    return evidence.lead.value + ERRORS * evidence.lead.error <= AS_GOOD


def _reasons(evidence: Evidence, supply: Supply, trained: Trained) -> list[str]:
    likeness, several = _likeness(evidence), f"a class has {_photos(supply.a_class)}"
    if supply.a_class < FEW:
        return [
            f"{several}, which is few (below {FEW}): the last stages would learn them by heart, not what they show",
            likeness,
        ]
    if trained == "head":
        wrong = round((1 - evidence.best.value) * evidence.judged)
        return [
            f"a head alone is wrong on {wrong} of {evidence.judged:,} photos: nothing that is left to gain could be seen"
        ]
    if trained == "all":
        return [likeness, f"{several}, enough (from {MANY} on) for larger networks to learn, and for longer"]
    more = f"; the whole network should have {MANY}" if _unlike(evidence) else ""
    return [likeness, f"{several}, enough (from {FEW} on) for the last stages not to learn them by heart{more}"]


def _photos(count: int) -> str:
    return f"{count:,} training photo{'s' * (count != 1)}"


def _likeness(evidence: Evidence) -> str:
    """Whether the photos look like those that the network has learned from, and what shows it."""
    earlier = max(list(evidence.cuts)[:-1], key=lambda name: evidence.cuts[name].value)
    lead = f"{100 * evidence.lead.value:+.1f} points against {earlier}"
    if _unlike(evidence):
        return f"the photos are unlike ImageNet's: whole things tell the classes apart no better than what comes before ({lead})"
    if _close(evidence):
        limit = f"{100 * AS_GOOD:+.0f}"
        return f"whether the photos resemble ImageNet's lies within chance of the limit ({lead}; the limit is {limit})"
    return f"the photos resemble ImageNet's: the network's last layers tell the classes apart best ({lead})"


def _close(evidence: Evidence) -> bool:
    """Whether chance may have decided between like and unlike."""
    lead = evidence.lead
    return abs(lead.value - AS_GOOD) <= ERRORS * lead.error


def _doubts(evidence: Evidence, supply: Supply) -> list[str]:
    """What speaks against being sure; a threshold counts only where the advice hangs on it."""
    best, doubts = evidence.best, []
    if evidence.judged < JUDGED:
        doubts.append(f"only {evidence.judged} photos could be judged")
    if best.value - ERRORS * best.error <= evidence.guess:
        doubts.append(
            "nothing that this network sees tells the classes apart better than guessing: look at photos and labels first"
        )
    if not _nothing_to_gain(evidence):
        pivots = (FEW, MANY) if _unlike(evidence) else (FEW,)
        near = [each for each in pivots if each / CLOSE <= supply.a_class < each * CLOSE]
        doubts += [f"{_photos(supply.a_class)} a class: near the limit of {each}" for each in near]
        if supply.a_class >= MANY and _close(evidence):
            doubts.append("whether the photos resemble ImageNet's came out close")
    if _unlike(evidence) and how_much(evidence, supply) != "head":
        doubts.append(
            "for photos unlike ImageNet's this is the textbook's rule, and has failed too: compare with --recipe quick"
        )
    name, count = supply.smallest
    if count < min(FEW, supply.a_class):
        doubts.append(f"class {name} has {_photos(count)}, too few whatever learns from them")
    return doubts


def _more_photos(evidence: Evidence) -> str:
    """Whether more of them would help, as far as halving them tells."""
    brought = evidence.doubling
    points = f"{100 * brought.value:+.1f} points"
    if brought.value - ERRORS * brought.error > 0:
        return f"more photos would help: twice as many to learn from brought {points} here"
    return f"more photos of the same kind would bring a head little: twice as many brought {points} here, within chance"


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {name:<7}", subsequent_indent=" " * 9)


def _table(advice: Advice) -> list[str]:
    """The evidence, a line each."""
    evidence, supply = advice.evidence, advice.supply
    rows: list[tuple[str, str | Score]] = [
        ("always the commonest class", f"{evidence.guess:.3f}"),
        *((f"by {name}", score) for name, score in evidence.cuts.items()),
        ("  with half as many photos", evidence.half),
        ("  with a quarter", evidence.quarter),
    ]
    return [
        f"  How often a class is named rightly ({evidence.judged:,} of {supply.photos:,} training and validation photos;",
        f"  the {supply.sealed:,} test photos stay sealed), by what a network trained on ImageNet sees, first layers first:",
        "",
        *(f"    {name:<30}{score}" for name, score in rows),
    ]
