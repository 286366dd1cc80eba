"""What the tests of the page share: a browser, a host of files, and a way to give photos and wait for the answers."""

import functools
import http.server
import shutil
import threading
from contextlib import contextmanager

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def given(page, *photos):
    """Choose these photos, (name, bytes), and wait for the answers."""
    page.wait_for_selector("body[data-ready]")
    files = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in photos]
    page.set_input_files("#choose", files)
    page.wait_for_selector(".card")
    while page.locator(".card.waiting").count():
        page.wait_for_timeout(20)
    return page.locator(".card").all()


class Files(http.server.SimpleHTTPRequestHandler):
    """A host of files that does nothing but hand them out, to pages from elsewhere too, as public ones do."""

    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, format, *args):  # noqa: A002 -- the name is the standard library's
        pass


@contextmanager
def host(folder):
    handler = functools.partial(Files, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
