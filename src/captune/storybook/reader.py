"""The exact reader: answers questions about a scene by what the parser finds stated in a caption.

A caption states one value of what is asked, and that is the answer; none, and it does not say; or two (a red and a blue
car; every colour there is), or one that is no option, and it is wrong, so that listing all values earns nothing. The
number of things is that of the things named. That something is *not* there no caption can state: the parser knows no
negation, and silence is no statement.
"""

from __future__ import annotations

from functools import lru_cache

from captune.data.questions import MultipleChoice
from captune.errors import ScorerError
from captune.storybook.parser import Fact, parse
from captune.storybook.world import INVERSE

_TYPES = {"attribute", "size", "subkind"}


class CaptionReader:
    """Reads the answers to `captune.storybook.questions` off a caption, see the module."""

    signature = "storybook.reader-1"

    def read(self, caption: str, question: MultipleChoice) -> int | None:
        """Return the index of the stated option; None where the caption does not say; another than the key if wrong.

        Raises:
            ScorerError: for a question that is not storybook's own.
        """
        said = stated(caption, question)
        if not said:
            return None
        wrong = (question.answer + 1) % len(question.options)
        value = next(iter(said))
        return question.options.index(value) if len(said) == 1 and value in question.options else wrong

    def can_answer(self, question: MultipleChoice) -> bool:
        """Whether a caption could state the key."""
        return question.options[question.answer] != "no"


def stated(caption: str, question: MultipleChoice) -> set[str]:
    """Return the values that a caption states of what a question asks about."""
    if not isinstance(question.slot, tuple) or not question.slot:
        raise ScorerError(f"only storybook's own questions have exact answers, not {question.text!r}: name a model")
    slot, *about = question.slot
    facts = _facts(caption)
    named = [fact.value[0] for fact in facts if fact.type == "object"]
    if slot == "background":
        return {fact.value[0] for fact in facts if fact.type == "background"}
    if slot == "presence":
        return {"yes"} if about[0] in named else set()
    if slot == "which":
        return set(named) & set(question.options)
    if slot == "count":
        return {str(len(named))} if named else set()
    if slot in _TYPES:
        return {fact.value[1] for fact in facts if fact.type == slot and fact.value[0] == about[0]}
    # of the axis that is asked about: the options are its two relations, or all four
    here = {fact.value for fact in facts if fact.type == "relation"}
    both = here | {(b, INVERSE[relation], a) for a, relation, b in here}
    return {relation for a, relation, b in both if [a, b] == about} & set(question.options)


@lru_cache(maxsize=4096)
def _facts(caption: str) -> tuple[Fact, ...]:
    return tuple(parse(caption))
