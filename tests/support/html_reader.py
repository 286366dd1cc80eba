"""A reader of HTML pages, as strict about tags as the pages are written."""

from html.parser import HTMLParser

VOID_TAGS = {"meta", "img", "br", "link", "rect", "line", "circle", "path", "input", "hr", "use", "polyline", "stop"}


class Reader(HTMLParser):
    """Parses the page as a browser does: text, attributes and balanced tags."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.words, self.attributes, self.tags, self.open = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID_TAGS:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def values(self, wanted):
        return [value for _, name, value in self.attributes if name == wanted]
