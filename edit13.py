from pathlib import Path
exec(open("/tmp/w/me/edit4.py").read().split("S=")[0])
S="src/captune/"
sub("tests/scorers/image/test_clip.py",("|prefix:none|context","|prefix:none|empty:0|context"),
('''    np.testing.assert_allclose(rows[:, 1], both, atol=1e-5)
    assert rows[0, 0]''','''    np.testing.assert_allclose(rows[[0, 1, 3], 1], both[[0, 1, 3]], atol=1e-5)
    assert rows[0, 0]'''))
p=Path("tests/scorers/image/test_clip.py"); s=p.read_text()
s+='''

def test_b11_saying_nothing_scores_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer = ClipScore(encoder=Encoder.load(folder, device="cpu"))
    assert scorer.rows(["", " \\n"], image=IMAGES[:2]).tolist() == [[0.0], [0.0]]
    assert scorer.rows(["a dog", ""], image=IMAGES[:2], references=REFERENCES[:2])[1].tolist() == [0.0, 0.0]
    assert caplog.text.count("are empty and score 0") == 1
'''
p.write_text(s)
sub(S+"scorers/image/cycle.py",('''    not depend on what else is scored. Captions longer than G's context are cut by G.
''','''    not depend on what else is scored. Captions longer than G's context are cut by G. An empty caption draws nothing and
    scores 0.
'''))
