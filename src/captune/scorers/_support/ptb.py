r"""Penn Treebank tokenization of captions, without Java.

pycocoevalcap scores captions after piping them through CoreNLP 3.4.1's `PTBTokenizer -preserveLines -lowerCase` and
dropping a list of punctuation tokens. `tokenize` gives the same words. It was written from the program's behaviour (its
answers to some hundred thousand probes: every BMP character, every word of one to four letters followed by a full stop,
two caption corpora), not from its source. What it keeps of that behaviour, odd as some of it looks:

- Brackets become `-lrb-`, `-rrb-`, `-lsb-` ... and stay: the drop list holds the upper-case names only.
- `!!` and `?!` stay (only the single marks are dropped); `wasn't` is `was n't`, `cannot` is `can not`.
- Characters that the lexer does not know (emoji outside the BMP among them) vanish.
- `2 1/2` is one token with a no-break space, which BLEU and CIDEr split again and ROUGE does not.

Where it differs on purpose: every kind of line break inside a caption (`\r \v \f U+0085 U+2028 U+2029` ...) is white
space here. pycocoevalcap lets such a caption shift all later captions by one line. And a caption is tokenized by
itself, where the Java program peeks at the first word of the next line to judge a final full stop: here a letter at the
end ("plan B.") loses it, as it does there before a line that begins with "A" or "The".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

VERSION = "ptb-2"  # part of every signature that depends on the tokens: raise it when a token can change

# A letter or digit: word characters without the underscore, without numerals such as superscripts, fractions and
# circled numbers, and without everything beyond the BMP. Combining marks continue a word;
# the two halves share no character, or a run of such letters could be read in exponentially many ways.
_C = (
    r"(?:[^\W_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u218f\u2460-\u24ff\u2776-\u2793\u3021-\u3029\u3038-"
    r"\u303a\u3192-\u3195\u3220-\u32bf\U00010000-\U0010ffff]|(?!\w)[\u02c2-\u036f\u0483-\u0487\u0591-\u05c7\u064b-\u0670"
    r"\u06d6-\u06ed\u0900-\u0903\u093c-\u094d\u0951-\u0963\u0981-\u0983\u09bc-\u09d7\u0e31-\u0e4e])"
)
_HYPHEN = r"[-\u2010\u2011_]"
_APOSTROPHE = "['\u2019\u0092]"
_A = "[A-Za-z]"

# Abbreviations that keep their full stop: in any case, not in lower case, not in upper case, and before a number only.
_ALWAYS = """
adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bhd bldg blvd brig bros calif capt cf cie cmdr co col
colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs hon
inc ind insp intl invt jan jos jr jul jun kan kans ky lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr
mrs ms msgr mt natl neb nev nov oct okla penn pfc ph plc pres prof pvt rd rep
reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues univ va vs vt
wed wis wisc wm wyo
"""
_NOT_LOWER = "ark az del ill la mass miss ore pa tex wash"
_NOT_UPPER = "mfg mtg ppte ppty pte ptes pty ptys"
_NUMBERED = "art ca fig figs no nos op pp prop"
# After "letter B." these words begin a sentence.
_STARTERS = """
about after an as at but he her here however if in it last many more now once one other our she since so some such that
the their then there these they this we what when while yet you a
"""
# Addresses. In the second-level part of a plain "site.com" the lexer takes no capitals and no digits.
_PATH = r"(?:/[^\s\"<>|(){}]+[^\s\"<>|.!?(){},-])?"
_ADDRESSES = (
    r"(?i:https?)://[^\s\"<>|(){}]+[^\s\"<>|.!?(){},-]",
    rf"www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[A-Za-z]{{2,4}}{_PATH}",
    rf"(?:[^\s\"`'<>|.!?(){{}}$,-_]+\.)+(?i:com|net|org|edu){_PATH}",
    r"<?[A-Za-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?",
)


def _forms(words: str, *forms: Callable[[str], str]) -> str:
    return "|".join(form(word) for word in words.split() for form in forms)


_WORD_RULES = [
    re.compile(rule)
    for rule in (
        # words, with inner hyphens; "dog!cat" is one word, and so is "d'or"
        rf"(?:[dDoOlL]{_APOSTROPHE}(?={_A}{{2}}))?{_C}+(?:{_HYPHEN}{_C}+)*",
        rf"{_A}+[!?]{_A}+",
        # a hyphen ties what a comma or full stop without a space would part: "a red,T-shaped box"
        r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-[A-Za-z0-9]+)+",
        # O'Neil, o'er, Hawai'i and some words by name
        rf"(?:[A-XZ]|{_A}*O){_APOSTROPHE}(?!(?i:ll|re|ve)(?!{_A})){_A}{{2,}}|(?i:e'er|(?:o|ne){_APOSTROPHE}er)\b",
        rf"{_A}+[aeiouyAEIOUY]{_APOSTROPHE}[aeiouAEIOU]{_A}*|(?:{_A}+-)+o{_APOSTROPHE}clock\b",
        rf"[yY]{_APOSTROPHE}(?={_A}{{2}})|[cC]\+\+|[A-Z]#",
        rf"(?i:nat'l|s'mores|c'mon|c{_APOSTROPHE}est|dunkin{_APOSTROPHE}|ol{_APOSTROPHE})(?!{_C})",
        # a word and its full stop before other inner punctuation
        rf"{_C}+(?:-{_C}+)*\.(?=[,;:])",
        # and/or, 24/7, black-and-white/red; R&B, AT&T, Q+A
        rf"[A-Za-z0-9]+(?:-{_A}+){{0,2}}(?:\\?/[A-Za-z0-9]+(?:-{_A}+){{0,2}}){{1,2}}",
        r"[A-Z]+(?:(?:&|&amp;|\+)[A-Z]+)+",
        # dotted: a.m. U.S.A. one.two example.com Ph.D.
        rf"(?:{_A}(?:\.{_A})+(?![A-Za-z0-9])|(?i:ph\.d))\.?",
        rf"{_A}[A-Za-z0-9]*(?:\.{_A}[A-Za-z0-9]*)+(?:-{_A}+)*(?:\.(?=[,;:]))?",
        rf"(?:{_forms(_ALWAYS, str.lower, str.capitalize, str.upper)}|{_forms(_NOT_LOWER, str.capitalize, str.upper)}|"
        rf"{_forms(_NOT_UPPER, str.lower, str.capitalize)})\.(?![A-Za-z])",
        rf"(?:{_forms(_NUMBERED, str.lower, str.capitalize, str.upper)})\.(?=\s*\d)",
        rf"{_A}\.(?!\s*$|{_A}|\s+(?:{_forms(_STARTERS, str.capitalize, str.upper)})(?!{_C}))",
        # numbers, fractions, telephone numbers, addresses
        r"\d+(?:[.,:]\d+)*",
        r"[A-Z]+\$",
        r"(?:\d{1,4}[- ])?\d{1,4}\\?/\d{1,4}(?!\d)",
        r"(?:\d{2,4}[- ]){2,}\d{3,5}(?!\d)|\d{2}[- ]\d{6}(?!\d)",
        *_ADDRESSES,
    )
]
_ENDING = "(?i:s|m|d|ll|re|ve)"
_SUFFIX = re.compile(_APOSTROPHE + _ENDING)
_OTHER_RULES = [
    re.compile(rule)
    for rule in (
        rf"''|{_APOSTROPHE}\d\ds|{_APOSTROPHE}\d\d(?= |$)",
        rf"{_APOSTROPHE}[nN](?:{_APOSTROPHE}|(?= |$))|[\u2019\u0092][nN]|{_APOSTROPHE}(?i:em|til|cause)(?!{_A})",
        rf"'{_ENDING}(?!{_A})|[\u2019\u0092]{_ENDING}",
        rf"'(?i:t(?=(?:is|was)(?!{_A})))",
        r"[-+]?(?:[.,:]\d+)+|[-+]\d+(?:[.,:]\d+)*",
        r"</?[A-Za-z][\w:.-]*(?: +[A-Za-z][\w:.-]*(?: *= *(?:\"[^\"]*\"|'[^']*'))?)* */?>|<[!?][A-Za-z-][^>]*>",
        r"\((?:\d{2,3})\)[ \u00a0]?\d{3,4}[- ]\d{3,5}(?!\d)",
        r"@[A-Za-z_]\w*|#[^\W\d_]+",
        r"&(?:amp|lt|gt|quot|apos|mdash|ndash|nbsp|#\d+);",
        # smileys, and runs that stay together
        r"[<>]?[:;=][-o*']?[()\[\]DPdpO\\{@|](?![A-Za-z0-9])",
        r"\([-^x=~<>'][_.]?[-^x=~<>']\)|[-^=~<>']_[-^=~<>'x]",
        r"[!?]{2,}|\.\.\.+|-{2,4}(?!-)|-{5,}|_+|#+|\*+|@+|<<|>>",
        *_ADDRESSES,
        r"(?:\. )+\.(?!\S)",
    )
]
_BRACKETS = {ord("("): "-lrb-", ord(")"): "-rrb-", ord("["): "-lsb-", ord("]"): "-rsb-", ord("{"): "-lcb-",
          ord("}"): "-rcb-"}  # fmt: skip
# What single characters become; "" means that the drop list would take them anyway.
_NAMED = {"€": "$", "¤": "$", "\u20a0": "$", "\u0080": "$", "£": "#", "¢": "cents", "½": "1/2", "¼": "1/4",
          "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}  # fmt: skip
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}
_SILENT = frozenset("\"'`.,:;!?-\u2013\u2014\u2015\u2026\u2018\u2019\u201b\u201c\u201d\u2039\u203a\u00ab\u00bb\u0085"
                    "\u0091\u0092\u0093\u0094\u0096\u0097\u2010\u2011\u058a")  # fmt: skip
# Symbols beyond ASCII that stand as tokens of their own; all others vanish.
_SYMBOL = re.compile(
    r"[\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bf\u00d7\u00f7\u037e\u0387\u0589\u061b\u061f\u066a\u06d4"
    r"\u0964\u0965\u0e3f\u2016\u2017\u201a\u201e\u201f\u2020-\u2023\u2030-\u2038\u203b\u203e\u2041\u2042\u2044\u2070"
    r"\u2074-\u208e\u20a4\u2100\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e"
    r"\u213a\u213b\u2140-\u2144\u214a-\u214d\u214f\u2155-\u215e\u2190-\u24ff\u2500-\u2767\u2768-\u27ff\u2800-\u2bff"
    r"\u3001\u3002\u3012\u30fb\uff01-\uff0a\uff0c\uff0e\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)

_CONTRACTION = re.compile(r"(?<![nN])[nN](?=['\u2019\u0092`][tT](?![A-Za-z]))")
_NOT = re.compile(r"[nN]['\u2019\u0092`][tT](?![A-Za-z])")
_SPLIT_IN_TWO = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3}

_PLAIN = re.compile(r"[a-z]+(?: [a-z]+)*(?:(?: |(?<=[a-z]{5}))\.)?")
_LONG = frozenset(word for word in _ALWAYS.split() if len(word) >= 5)
_PLAIN_WORD = re.compile(rf"[A-Za-z]+(?=,?(?: |$)|;)|(?i:(?!(?:{'|'.join(sorted(_LONG))})\.)[a-z]{{5,}}(?=\.(?: |$)))")


@lru_cache(maxsize=2**20)
def tokenize(caption: str) -> str:
    """The caption's words as pycocoevalcap's tokenizer gives them: lower case, joined by single spaces.

    Cached, so that a caption is tokenized once however many scorers ask for its words.
    """
    text = caption.lower() if caption.isascii() else caption
    if _PLAIN.fullmatch(text):  # letters and spaces: most short captions
        words = text.rstrip(" .").split(" ")
        if _SPLIT_IN_TWO.keys().isdisjoint(words) and words[-1] not in _LONG:
            return " ".join(words)
    return " ".join(_lex(" ".join(caption.replace("\u00ad", "").split())))


def words(caption: str) -> list[str]:
    """The caption's words; a caption without words gives an empty list."""
    return tokenize(caption).split()


def _lex(text: str) -> list[str]:
    """Longest match at every position, as a lexer does; dropped tokens are left out."""
    tokens: list[str] = []
    position = 0
    while position < len(text):
        character = text[position]
        if character == " ":
            position += 1
            continue
        plain = _PLAIN_WORD.match(text, position)
        if plain and plain.group().lower() not in _SPLIT_IN_TWO:
            tokens.append(plain.group().lower())
            position = plain.end()
            continue
        if character in ",." and text[position + 1 : position + 2] in " ":
            position += 1
            continue
        word = character.isalnum()
        end = max((m.end() for rule in (_WORD_RULES if word else _OTHER_RULES) if (m := rule.match(text, position))),
                  default=position)  # fmt: skip
        if end == position:
            tokens.extend(_single(character))
            end = position + 1
        elif word:
            end = _word(text, position, end, tokens)
        else:
            _run(text[position:end], tokens)
        position = end
    return tokens


def _word(text: str, start: int, end: int, tokens: list[str]) -> int:
    """Appends the word at [start, end), cut where English contracts (isn't, cannot); returns where it continued."""
    if _NOT.match(text, start):
        tokens.append(text[start : start + 3].lower().replace("\u2019", "'").replace("\u0092", "'"))
        return start + 3
    if end - 1 > start and _CONTRACTION.match(text, end - 1):
        end -= 1
    token = text[start:end].lower()
    cut = _SPLIT_IN_TWO.get(token)
    if cut:
        tokens.extend((token[:cut], token[cut:]))
    else:
        tokens.append(token.replace(" ", "\u00a0").replace("\u0092", "").replace("&amp;", "&"))
    return end


def _run(run: str, tokens: list[str]) -> None:
    """Appends a token that starts with something else than a letter or digit."""
    token = _ENTITIES.get(run, run)
    if (token.startswith("&") and token[1:2].isalpha()) or token.startswith(("...", ". .", "''")):
        return
    if len(token) < 5 and not token.strip("-"):
        return
    token = token.lower().replace(" ", "\u00a0")
    if _SUFFIX.fullmatch(token):
        token = token.replace("\u2019", "'").replace("\u0092", "'")
    if not token.endswith(">"):  # no tag
        token = token.replace("(", "-lrb-").replace(")", "-rrb-")
    tokens.append(token.replace("\u0092", ""))


def _single(character: str) -> tuple[str, ...]:
    if character in _SILENT:
        return ()
    if character.isascii():
        return (_BRACKETS.get(ord(character), character),) if character.isprintable() else ()
    if character in _NAMED:
        return (_NAMED[character],)
    return (character,) if _SYMBOL.match(character) else ()
