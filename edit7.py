from pathlib import Path
exec(open("/tmp/w/me/edit4.py").read().split("S=")[0])
S="src/captune/"
sub(S+"models/vizer_mapper.py",('settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))','settings = dict(read_json(folder / "config.json", error=CaptionerError))'),
("        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:\n","        except CaptionerError:\n            raise\n        except (ValueError, KeyError, TypeError, RuntimeError) as error:\n"),
("from captune.utils.hashing import weights_digest\n","from captune.utils.files import read_json\nfrom captune.utils.hashing import weights_digest\n"))
p=Path(S+"models/loading.py"); s=p.read_text()
a=s.index("def _json_object"); b=s.index("def _unfit")
s=s[:a]+'''def _json_object(path: Path) -> dict[str, Any]:
    content = read_json(path, error=CaptionerError)
    if not isinstance(content, dict):
        raise CaptionerError(f"{path} is no JSON object but {type(content).__name__}")
    return content


'''+s[b:]
s=s.replace("from captune.utils.files import replace_file","from captune.utils.files import read_json, replace_file")
p.write_text(s)
