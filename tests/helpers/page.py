"""Reading an HTML page as a browser without a network would, and refusing one that does not stand alone."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "img", "br", "link", "input", "hr", "base", "col", "source", "wbr"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, in order, and nothing points outside."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.headings, self.tags, self.text = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert len(given) == len(attributes), f"<{tag}> has an attribute twice: {attributes}"
        self.tags.append((tag, given))
        if "id" in given:
            assert given["id"] not in self.ids, f"id {given['id']} is there twice"
            self.ids.append(given["id"])
        self.links += [given[name] for name in ("href", "src", "xlink:href", "srcset", "action") if name in given]
        assert not [name for name in given if name.startswith("on")], attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def words(self):
        return " ".join(" ".join(self.text).split())


def check_svg(text):
    """A picture that stands alone: well-formed, no script, nothing from outside itself."""
    root = ElementTree.fromstring(text)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert root.tag.endswith("svg") and not {"script", "image", "foreignObject", "metadata"} & tags
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        for name, value in element.items():
            links = re.findall(r"url\(([^)]*)\)", value) + ([value] if name.endswith("href") else [])
            assert all(link.startswith("#") and link[1:] in ids for link in links), (name, value)


def check(text):
    """A page that stands alone: well-formed, below 5 MB, without scripts and without any address outside itself."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and len(text.encode()) < 5_000_000
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == 1 and tags.count("title") == 1 and "script" not in tags
    assert tags.count("style") == 1
    assert not {"iframe", "object", "embed", "link", "base", "form"} & set(tags)
    for link in page.links:
        assert link.startswith(("data:image/", "#")), link
        assert not link.startswith("#") or link[1:] in page.ids, f"{link} leads nowhere"
    assert not re.search(r"https?:|//[a-z]|@import|@font-face", re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", text))
    assert "url(" not in text
    assert all(given.get("alt") for tag, given in page.tags if tag == "img"), "pictures say what they show"
    for svg in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", text):
        check_svg(base64.b64decode(svg).decode())
    assert any(given.get("name") == "viewport" for tag, given in page.tags if tag == "meta")
    return page
