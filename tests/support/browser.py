"""A browser's path, a file server, and the web page's file picker."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def choose_photos(page, *photos: tuple[str, bytes]):
    """Choose these photos, (name, bytes), on the page and wait for the answers: its cards."""
    page.wait_for_selector("body[data-ready]")
    files = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in photos]
    page.set_input_files("#choose", files)
    page.wait_for_selector(".card")
    while page.locator(".card.waiting").count():
        page.wait_for_timeout(20)
    return page.locator(".card").all()


def find_covered_headings(page, width: int) -> list[str]:
    """Follow each link of a page's menu at this width: the links whose heading the menu covers."""
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(reduced_motion="reduce")
    # The page measures its menu after the change of size, in the browser's next frame.
    page.wait_for_function(
        """() => document.documentElement.style.getPropertyValue("--nav-height") ===
          `${document.querySelector("nav").offsetHeight}px`"""
    )
    return page.evaluate(
        """() => [...document.querySelectorAll("nav a")].map((link) => link.hash).filter((hash) => {
          if (!hash) return false;
          location.hash = hash;
          const heading = document.querySelector(`${hash} h2`).getBoundingClientRect();
          const menu = document.querySelector("nav").getBoundingClientRect();
          return heading.top < Math.max(menu.bottom, 0);
        })"""
    )


class FileRequestHandler(http.server.SimpleHTTPRequestHandler):
    """Serve files and nothing else, to pages of other origins too, as public hosts do."""

    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, format, *args):  # noqa: A002 -- the name is the standard library's
        pass


@contextmanager
def serve_files(folder: Path) -> Iterator[str]:
    """Serve the files of a folder within this block; gives the address."""
    handler = functools.partial(FileRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
