#!/usr/bin/python3
"""Opens pages in a headless Chromium, 1280 and 400 pixels wide, light and dark, and says what a reader would stumble over.

    tests/browse.py BROWSER PAGE...     prints one line for each trouble; exit code 1 if there is any

Speaks the DevTools protocol through the browser's pipe (--remote-debugging-pipe: JSON between NUL bytes on descriptors 3 and 4).
"""
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import time

PATIENCE = 60  # seconds for one answer, on a busy machine
LEAST_LETTERS = 8.5  # CSS pixels: size of a picture's smallest letters (9 pt of the picture)
MEASURE = """(() => {
  const luminance = text => {
    const c = text.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
  };
  const style = getComputedStyle(document.body), pictures = [...document.querySelectorAll('svg')];
  const strokes = pictures.flatMap(p => [...p.querySelectorAll('path[style*="var("]')]).map(e => getComputedStyle(e)).map(s => s.stroke == 'none' ? s.fill : s.stroke);
  return JSON.stringify({
    width: document.documentElement.scrollWidth,
    paper: luminance(style.backgroundColor), ink: luminance(style.color),
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
    images: document.images.length, pictures: pictures.length,
    letters: Math.min(99, ...pictures.map(p => 9 * p.getBoundingClientRect().width / p.viewBox.baseVal.width)),
    outside: pictures.filter(p => p.getBoundingClientRect().right > innerWidth || p.getBoundingClientRect().left < 0).length,
    inks: strokes.filter(s => s.startsWith('rgb')).map(luminance),
    ids: [...document.querySelectorAll('[id]')].map(e => e.id).filter((id, i, all) => all.indexOf(id) != i).length
  });
})()"""


class Browser:
    def __init__(self, program, profile):
        to_browser, self.out = os.pipe()
        self.inp, from_browser = os.pipe()

        def only_3_and_4():
            # to high numbers first: one of them may be 3 or 4 itself
            a, b = os.dup2(to_browser, 103), os.dup2(from_browser, 104)
            os.dup2(a, 3), os.dup2(b, 4)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage",
                 f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        self.process = subprocess.Popen([program, *flags], preexec_fn=only_3_and_4, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser), os.close(from_browser)
        self.buffer, self.count, self.events = b"", 0, []

    def receive(self, seconds):
        """The next message, None after so many seconds without one."""
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.inp], [], [], max(0, end - time.monotonic()))
            part = os.read(self.inp, 1 << 16) if ready else b""
            if not part:
                return None
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, session=None, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive(PATIENCE)
            if answer is None:
                sys.exit(f"browse: no answer to {method}")
            if answer.get("id") == self.count:
                if "error" in answer:
                    sys.exit(f"browse: {method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method):
        while not any(e.get("method") == method for e in self.events):
            event = self.receive(PATIENCE)
            if event is None:
                sys.exit(f"browse: no {method}")
            self.events.append(event)


def troubles(browser, page, width, scheme):
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Network", "Log", "Runtime"):
        browser.call(f"{domain}.enable", session)
    browser.call("Emulation.setDeviceMetricsOverride", session, width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.call("Emulation.setEmulatedMedia", session, features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.events.clear()
    address = pathlib.Path(page).resolve().as_uri()
    browser.call("Page.navigate", session, url=address)
    browser.wait_for("Page.loadEventFired")
    seen = json.loads(browser.call("Runtime.evaluate", session, expression=MEASURE)["result"]["value"])
    found = []
    for event in browser.events:
        params = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent" and params["request"]["url"] != address and not params["request"]["url"].startswith("data:"):
            found.append(f"it asks for {params['request']['url'][:200]}")
        if event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            found.append(f"console: {params['entry']['text'][:200]}")
        if event["method"] == "Runtime.exceptionThrown" or event["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
            found.append("console: an error")
    browser.call("Target.closeTarget", targetId=target)
    low, high = sorted((seen["paper"], seen["ink"]))
    checks = ((seen["width"] > width, f"it is {seen['width']} pixels wide"), (seen["broken"], f"{seen['broken']} broken images"),
              (not seen["pictures"], "it has no picture"), (seen["letters"] < LEAST_LETTERS, f"letters of {seen['letters']:.1f} pixels in a picture"),
              (seen["outside"], f"{seen['outside']} pictures reach beyond the edge"), (seen["ids"], f"{seen['ids']} ids stand for two things"),
              ((seen["paper"] > seen["ink"]) != (scheme == "light"), f"it is not {scheme}"), ((high + 0.05) / (low + 0.05) < 7, "text and paper differ too little"),
              # of graphics WCAG 2.1 asks for 3; the grid is meant to be faint
              (not any(max(i, seen["paper"]) + 0.05 >= 3 * (min(i, seen["paper"]) + 0.05) for i in seen["inks"]), "no line of the pictures stands out from the paper"))
    return found + [text for bad, text in checks if bad]


def main():
    program, *pages = sys.argv[1:]
    count = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            for page in pages:
                for width in (1280, 400):
                    for scheme in ("light", "dark"):
                        for text in troubles(browser, page, width, scheme):
                            print(f"{page}, {width} pixels, {scheme}: {text}")
                            count += 1
        finally:
            browser.process.kill()
            browser.process.wait()
    sys.exit(1 if count else 0)


main()
