from pathlib import Path
exec(open("/tmp/w/me/edit4.py").read().split("S=")[0])
S="src/captune/"
sub(S+"scorers/image/self_retrieval.py",('''    Among k images or fewer every caption finds its own in the first k: that recall_k says nothing and is left out, with a
    warning, or refused if no k is left. An empty caption retrieves nothing: its recalls and its 1 / rank are 0.
''','''    Among k images or fewer every caption finds its own in the first k: that recall_k says nothing and is left out, with
    a warning, or refused if no k is left. An empty caption retrieves nothing: its recalls and its 1 / rank are 0.
'''),("|ties:against|","|ties:against|empty:0|"))
sub(S+"scorers/image/clip.py",
('''        if empty:
            _log.warning''','''        if empty and not self._warned:  # once: a reward could say so at every step
            self._warned = True
            _log.warning'''),
('''        self._cut = 0.0

    @property
    def encoder''','''        self._cut, self._warned = 0.0, False

    @property
    def encoder'''),
('''|prefix:{self.prefix or 'none'}"
            f"|context''','''|prefix:{self.prefix or 'none'}"
            f"|empty:0|context'''))
sub(S+"scorers/image/cycle.py",
('''        place = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        _, drawn = features(_Drawn(list(place), self.draw), batch_size=self.batch_size)
        cosines = [float(own @ drawn[place[caption]]) for own, caption in zip(sources, captions, strict=True)]
''','''        place = {caption: i for i, caption in enumerate(dict.fromkeys(c for c in captions if c.strip()))}
        _, drawn = features(_Drawn(list(place), self.draw), batch_size=self.batch_size)
        cosines = [
            float(own @ drawn[place[caption]]) if caption in place else 0.0
            for own, caption in zip(sources, captions, strict=True)
        ]
'''),
('''@{self.encoder.digest}|cosine"''','''@{self.encoder.digest}|cosine|empty:0"'''))
p=Path("tests/scorers/image/test_clip.py"); s=p.read_text()
s=s.replace('''    np.testing.assert_allclose(rows[:, 0], scores, atol=1e-5)
''','''    np.testing.assert_allclose(rows[[0, 1, 3], 0], np.asarray(scores)[[0, 1, 3]], atol=1e-5)
    assert CAPTIONS[2].strip() == "" and rows[2].tolist() == [0, 0]  # says nothing
''',1)
p.write_text(s)
