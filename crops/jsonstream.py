"""JSON files of any length, read element by element."""
import json

CHUNK = 1 << 20  # characters read at a time


class JsonText:
    """A cursor over a JSON file that holds a window of the text, so that memory does not grow with it."""

    def __init__(self, path):
        self.path = path
        try:
            self.file = open(path, encoding="utf-8-sig")
        except FileNotFoundError:
            raise FileNotFoundError(f"no annotation file {path}: check --annotations") from None
        self.text, self.at = "", 0
        self.decode = json.JSONDecoder().raw_decode

    def fill(self):
        """Drop what was read and read on; doubling keeps repeated attempts at one long value linear."""
        rest = self.text[self.at:]
        try:
            chunk = self.file.read(max(CHUNK, len(rest)))
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is not a JSON text in UTF-8: {error}") from None
        self.text, self.at = rest + chunk, 0
        return bool(chunk)

    def peek(self):
        """The next character that is not white space, "" at the end; the cursor stands on it."""
        while True:
            text, at = self.text, self.at
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            self.at = at
            if at < len(text):
                return text[at]
            if not self.fill():
                return ""

    def take(self, accepted: str):
        """The next character, which must be one of `accepted`; ValueError otherwise."""
        found = self.peek()
        if found == "" or found not in accepted:
            expected = " or ".join(repr(c) for c in accepted)
            raise ValueError(f"{self.path} is not valid JSON: expected {expected}, found "
                             f"{found or 'its end'!r}: is the file complete?")
        self.at += 1
        return found

    def elements(self, close: str):
        """Yield once before each element of a list or object; takes the commas and the bracket `close`."""
        more = self.peek() != close
        if not more:
            self.take(close)
        while more:
            yield
            more = self.take("," + close) == ","

    def value(self):
        """Decode the JSON value under the cursor and move past it."""
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.fill():
                    continue
                near = self.text[self.at:self.at + 30]
                raise ValueError(f"{self.path} is not valid JSON ({error.msg} at {near!r}): "
                                 "is the file complete?") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self.path} is no annotation file ({error})") from None
            length = end - self.at
            if end == len(self.text) and self.fill():
                continue  # a number that ends with the window may go on in the file
            self.at += length
            return value


def iterate_json(path, wanted):
    """Yield (key, element) for every element of the arrays under the keys `wanted` of a JSON object.

    The file is read once, front to back, one element in memory at a time. ValueError in one line when the
    file is not such an object; OSError when it cannot be opened.
    """
    text = JsonText(path)
    with text.file:
        if text.peek() != "{":
            raise ValueError(f"{path} must hold a JSON object with {', '.join(wanted)}, "
                             f"but starts with {text.peek()!r}")
        text.take("{")
        for _ in text.elements("}"):
            key = text.value()
            text.take(":")
            if key not in wanted:
                text.value()
            elif text.take("[") == "[":
                for _ in text.elements("]"):
                    yield key, text.value()
