"""Odd captions and plain prose, to try tokenizers and scorers on text that they were not written for.

`odd_captions` joins halves of captions and puts odd pieces between their words: abbreviations, numbers, quotes,
currency, addresses, emoji, ellipses, hyphens, contractions, measurements, Unicode punctuation. The pieces are split
into those that captune's tokenizer was improved on (half 0) and those that were kept back to measure it (half 1).
`prose` takes sentences from the docstrings, licences and descriptions of the installed packages, split likewise.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

PIECES = {
    "abbreviation": """Mr. Mrs. Dr. St. Ave. U.S. U.K. D.C. a.m. p.m. e.g. i.e. etc. vs. Jr. Inc. Co. Ltd. approx.
        ft. in. lb. lbs. oz. min. sq. cm. Jan. Sept. Mon. Prof. Gen. Sgt. Capt. J. No. Nos. Mt. Ft. Blvd. Rd. pp.
        Ph.D. M.D. B.A. L.A. N.Y. U.S.A. A.M. P.M. Ms. Rev. Hon. Sr. Gov. Sen. Bros. Corp. Fig. fig. vol. ed. Dept.
        Univ. Tues. Fri. c. R.I.P. WWII Ste. Apt. Hwy. Pkwy. Sat. Sun. Aug. Dec. mi. yr. yrs. hr. tbsp. tel. max.
        misc. temp. incl. dept. est.""",
    "number": """3.5 1,000 10:30 1/2 3/4 50% 20s 1990s '90s 1st 2nd 3rd #1 5'10" 6" 2-3 10x 4x4 12:30pm 10am 1990's
        ½ 1½ 007 -5 +3 3-D 2D 1,234,567.89 24/7 9/11 10/10/2010 1-800-555-1234 (555) 555-1234 13th 0.5 .5 100th 3x
        7up 16:9 8.5x11 50-50 20-something 4th-floor 1960s-era 12,5 3,5 2.0.1 v2.0 1e5 90° 10% 5-6 1939-45 #22 No.1
        24-hour 1/4-inch two-thirds 2/3 4½ 11:59 '07 '80s 2x4 30-40% 99.9% ¾ 5th 21st 0-0 3-2""",
    "quote": """"STOP" 'Stop' “Open” ‘hi’ ``sale'' «ouvert» "One Way." 'Exit', “Welcome,” ‘It’s on’ "No Parking!"
        '"go"' "A" 'B' „gut“ ‹x› `code` "Don't Walk" 'rock' "24 Hours" ’tis 'twas 'n' "5 Star" “Bob’s” 'Bob's'
        "E=mc2" "Mr. Big" "U.S. Mail" "I'm" "Joe's Bar & Grill" "7-Eleven" "McDonald's" "Coca-Cola" "Ben & Jerry's"
        ′ ″ “…” "..." "-" '' \"\"""",
    "money": """$5 £20 €15 5¢ $1,299.99 US$5 ¥100 $3.50 20$ 10€ £1.50 $5-$10 $2million A$5 C$10 HK$20 ₹500 $.99
        $1.5M 50p 99¢ $20/hr ₩1000 5£ $100k NZ$7 USD5 €1.000,00 ₽ ฿50 $$$ £££ $0.99/lb""",
    "address": """www.flickr.com http://example.org/a?b=c&d=1 https://foo.org foo@bar.com @user #sunset example.com
        www.foo.co.uk/bar https://example.com/a_b-c/d.html me.you@mail.foo.org @home_town #NoFilter amazon.com
        youtube.com/watch bbc.co.uk nyc.gov http://t.co/aBc123 ftp://foo.net/x #1fan a@b.c index.html photo.jpg
        IMG_1234.JPG www.x.io https://www.instagram.com/p/abc/ (www.site.com) Flickr.com, site.org/about #summer2014
        @Joe's readme.txt node.js""",
    "symbol": """😀 ❤️ 👍🏽 👨‍👩‍👧 ☀ ★ ✓ → :) :-) ;) :( <3 :D © ® ™ ° • · × ÷ † § ¶ ¿ ¡ 🐕🐕 ♥ ♪ ☺ ■ ◆ ▲ ✈ ⚽ ☕
        🇺🇸 :P xD ^_^ T_T (: :/ :'( =) 8) :-( ♂ ❄ ⭐ 🎉 № ℃ Ω ∞ ≈ ≤ ± µ √ ← ↑ ¦ ‡ ※""",
    "ellipsis": """... … . . . .. .... ..... etc... wait...what "...and" (...) and... ...the dog…cat so…. ?... !...
        .…""",
    "hyphen": """well-known black-and-white 5-year-old T-shirt x-ray mid-air co-op ex-wife pre-1990 high-speed -ish
        self- – — -- ---- multi-colored U-turn Coca-Cola jack-o'-lantern merry-go-round six-pack 20-foot-tall
        hand-in-hand e-bike L-shaped man–made red—blue dog--cat non‑stop over‐sized semi- rock-n-roll A-frame
        3-wheeled half-eaten-apple X-Men Wi-Fi post-9/11 re-elected o-ring two- or three-year-old pull-up's -20
        U.S.-made anti-U.S. \u00adsoft\u00adhyphen""",
    "contraction": """don't can't isn’t it's they're y'all o'clock ma'am rock'n'roll 'til couldn't've dogs' James'
        he'd won't ain't let's cannot gonna I've it’ll who's wanna gotta DON'T Can't shouldn't mustn't 'em y’all
        o’clock dog’s boys’ what'd there'd She'll we'd've should've gimme whaddya more'n 'cause goin' rockin’ d'ye
        dunno lemme Dunkin' nat'l O'Brien O’Neil Hawai'i D'Angelo l'eau L’Oreal t'was n't not've '16 Ya'll 'bout
        gov't int'l ne'er e'er Ol' ol’ Guns N' Roses""",
    "measure": """6ft 10cm 30°C 5m² 10km/h 60mph 5lbs 2'x4' 20/20 5'x7' 10kg 70°F 3.5in 5-ft 12-oz. 5oz. 8-in. 100m
        4K 1080p 5ft. 2.5L 100% 35mm f/2.8 1/250s ISO-400 24-70mm 12V H2O CO2 m/s 10,000ft 50/50 6'2 4'x8' 32GB 2mi.
        10ºC 98.6°F""",
    "foreign": """café naïve façade São Zürich El-Niño 日本語 русский हिन्दी ไทย العربية 한국어 Ελλάδα résumé
        Beyoncé's piñata jalapeño Łódź Køge Größe œuvre İstanbul e\u0301clair Māori ñ Ünïcödé 中文。 「本」 ，が
        Tiếng-Việt ﬁne ﬂag x² H₂O ⅓ ① Ⅳ ½-inch""",
    "mark": """! !! ?! ; : , / & * ~ _ | \\ () [] {} < > = + ^ @ ( ) [ ] { } (sic) [1] <b>bold</b> <unk> </s> &amp;
        a/b and/or his/her w/ w/o b/c R&B AT&T Q&A B&W *wow* _under_ ~5 a*b a_b a=b a+b A+ C++ C# dog(s) (or)cat
        he/she/they man/woman 1&2 rock&roll <PERSON> <|end|> \\n %s $x {name} [MASK] (2) (a) 1) 2. a) A. B. i. => ->
        <- == != || && ** ## __ N/A TV/DVD ,, ;; :: ?? ??? !!! , . x,y x;y x:y x!y x?y x.y the.dog end.Start
        end.start ,dog .dog dog, ;dog "dog." (dog.) dog." dog.) &lt; &#39; &quot; &apos; I. V. X. x. K. Z. e. o. an.
        The. dog.The 5.The A.The""",
}  # fmt: skip


def odd_captions(captions: Sequence[str], number: int, half: int, seed: int = 0) -> list[str]:
    """`number` captions with one to three odd pieces each."""
    rng = random.Random(f"{seed} {half}")
    pieces = {kind: text.split()[half::2] for kind, text in PIECES.items()}
    made = []
    while len(made) < number:
        first, second = (rng.choice(captions).split() for _ in range(2))
        words = first[: rng.randint(0, len(first))] + second[rng.randint(0, len(second)) :]
        for _ in range(rng.randint(1, 3)):
            piece = rng.choice(pieces[rng.choice(list(pieces))])
            piece = (
                rng.choice(("", "", "", "", "(", '"', "'"))
                + piece
                + rng.choice(("", "", "", "", "", ",", ".", ")", "!", '"', ":"))
            )
            at = rng.randint(0, len(words))
            words.insert(at, piece)
            if rng.random() < 0.08 and at:
                words[at - 1 : at + 1] = [words[at - 1] + piece]
        text = " ".join(words)
        made.append(text[0].upper() + text[1:] if rng.random() < 0.5 else text)
    return made


def prose(number: int, half: int) -> list[str]:
    """Up to `number` sentences from the docstrings and texts of the installed packages, each of them once."""
    site = Path(sysconfig.get_paths()["purelib"])
    files = [
        f
        for f in site.rglob("*")
        if f.suffix in {".py", ".md", ".rst", ".txt"} or f.name == "METADATA" or "LICENSE" in f.name
    ]
    files.sort()
    random.Random(0).shuffle(files)
    seen: dict[str, None] = {}
    for file in files[half::2]:
        for text in _texts(file):
            for paragraph in re.split(r"\n\s*\n", text):
                if re.search(r">>>|^\s*([-:*=|#.]|\w+ *[=(:])", paragraph, re.M):  # code, lists, tables
                    continue
                line = " ".join(paragraph.split())
                for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", line):
                    if 4 < sentence.count(" ") < 80:
                        seen[sentence] = None
        if len(seen) >= number:
            break
    return list(seen)[:number]


def _texts(file: Path) -> Iterator[str]:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix != ".py":
            yield text
            return
        tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""
