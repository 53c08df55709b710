from pathlib import Path
exec(open("/tmp/w/me/edit4.py").read().split("S=")[0])
S="src/captune/"
p=Path(S+"errors.py"); s=p.read_text()
a=s.index("_IN_URL = "); b=s.index("_IN_QUERY = ")
s=s[:a]+'''_IN_URL = re.compile(  # a password that holds / or # as it is, too, but not a port: http://host:8000/v1#model@1
    r"(\\b[a-z][a-z0-9+.-]*://)(?:[^\\s/?#'\\"|]+|[^\\s/?#@:'\\"|]*:(?!\\d+(?:[/?#\\s]|$))[^\\s'\\"|]*)@", re.IGNORECASE
)
'''+s[b:]
s=s.replace('''re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_ID)?$")''','''re.compile(r"(API_?KEY|ACCESS_KEY(_ID)?|SECRET(_KEY)?|TOKEN|PASSWORD|PASSWD)$")''')
p.write_text(s)
sub(S+"models/vizer_mapper.py",('''            raise CaptionerError(
                f"{folder / 'config.json'} is not the config of a mapper ({type(error).__name__}: {first_line(error)}). "
                + _FIT_AGAIN
            ) from error
''','''            why = f"{type(error).__name__}: {first_line(error)}"
            raise CaptionerError(
                f"{folder / 'config.json'} is not the config of a mapper ({why}). {_FIT_AGAIN}"
            ) from error
'''))
sub(S+"models/answerers/server.py",
('''            raise SettingError(
                f"{url!r} names''','''            raise SettingError(
                f"{redact(url)!r} names'''),
('''        self.base = base.rstrip("/")
''','''        self.base = base.rstrip("/")
        self.address = redact(self.base)  # what messages, signatures and files say
'''),
('''        return f"{self.model}@{self.base}"
''','''        return f"{self.model}@{self.address}"
'''),
('''                f"nothing answers at {self.base} (''','''                f"nothing answers at {self.address} ('''),
('''            reply_start = reply[:80].decode(errors="replace")
            raise ScorerError(f"{self.base} gave''','''            reply_start = self._without_key(reply[:200].decode(errors="replace"))[:80]
            raise ScorerError(f"{self.address} gave'''),
('''f"{self.model} at {self.base} gives no log''','''f"{self.model} at {self.address} gives no log'''),
('''f"{self.model} at {self.base} gave no answer in {self.attempts} attempts; the last: {failure}"''','''f"{self.model} at {self.address} gave no answer in {self.attempts} attempts; the last: {failure}"'''),
('''                body = error.read(2000).decode(errors="replace")
''','''                body = self._without_key(error.read(2000).decode(errors="replace"))
'''),
('''{error.code} {error.reason}: ''','''{error.code} {self._without_key(str(error.reason))}: '''),
('''raise ScorerError(f"{self.base} refused''','''raise ScorerError(f"{self.address} refused'''),
('''                failure = str(getattr(error, "reason", None) or error) or type(error).__name__
''','''                failure = self._without_key(str(getattr(error, "reason", None) or error)) or type(error).__name__
'''),
('''        request = urllib.request.Request(
            f"{self.base}/chat/completions", json.dumps(payload).encode(), {"Content-Type": "application/json"}
        )
        key = os.environ.get(self._key_variable())
        if key:  # and never sent to where the server may redirect
            request.add_unredirected_header("Authorization", f"Bearer {key}")
''','''        parts = urlsplit(self.base)
        user, _, host = parts.netloc.rpartition("@")
        request = urllib.request.Request(
            f"{parts._replace(netloc=host).geturl()}/chat/completions",
            json.dumps(payload).encode(),
            {"Content-Type": "application/json"},
        )
        # and never sent to where the server may redirect
        if user:
            request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}")
        elif key := self._key():
            request.add_unredirected_header("Authorization", f"Bearer {key}")
'''),
('''    def _key_variable(self)''','''    def _key(self) -> str:
        """The key without the line end that a file gives it; ScorerError, which does not show it, for other oddities."""
        key = os.environ.get(self._key_variable(), "").strip()
        if not all("!" <= character <= "~" for character in key):
            raise ScorerError(
                f"the key in {self._key_variable()} has a space, a line end or a character beyond ASCII in it, which "
                "no server takes: set it again"
            )
        return key

    def _without_key(self, text: str) -> str:
        """A server's words without the secrets that it was sent, which some repeat, and without others'."""
        user = urlsplit(self.base).netloc.rpartition("@")[0]
        secrets = [os.environ.get(self._key_variable(), "").strip(), *user.split(":"), *unquote(user).split(":")[1:]]
        secrets.append(base64.b64encode(unquote(user).encode()).decode())
        for secret in sorted({secret for secret in secrets if len(secret) > 3}, key=len, reverse=True):
            text = text.replace(secret, "***")
        return redact(text)

    def _key_variable(self)'''),
("from captune.errors import ScorerError, SettingError\n","from captune.errors import ScorerError, SettingError, redact\n"),
("from urllib.parse import urlsplit\n","from urllib.parse import unquote, urlsplit\n"),
('''    The key is read from OPENAI_API_KEY, or from HF_TOKEN for servers of Hugging Face. After''','''    The key is read from OPENAI_API_KEY, or from HF_TOKEN for servers of Hugging Face, unless the address has a user and
    a password (http://user:password@host); neither is shown in a message, a signature or a file. After'''),
)
