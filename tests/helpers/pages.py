"""Pages of HTML as their tags and texts."""

from collections import Counter
from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags and texts of a page; every tag that is opened must be closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.sources, self.texts, self._open = Counter(), [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
