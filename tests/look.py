"""What do the notebooks look like in JupyterLab, and the READMEs on a forge?

    python -m tests.look [--out FOLDER] [PATH ...]

Opens every notebook in JupyterLab, and every README in GitHub's column, in a headless Chromium.
Takes pictures of all of each page, of notebooks in the light and in the dark theme, and prints what
is wrong: formulas that are not set, tables and pictures that are cut off, pictures that do not load
or stand still, stderr, and a front page that is too long.  No cell is run, and nothing but FOLDER
is written, with summary.json.  Exits with status 1 where something is wrong.

Needs `apt install chromium fonts-liberation`; other fonts have other widths.
"""

import argparse
import base64
import itertools
import json
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import websocket  # jupyter installs it

ROOT = Path(__file__).parent.parent
WIDTHS = (1440, 1024)  # of the window
SCREEN = 900  # pixels, its height
MOST_SCREENS, MOST_LINES = 5, 150  # of the front page
PATIENCE = 60  # seconds until a page has to be there
PICTURE = 2400  # pixels, the height of one picture
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SETTINGS: dict[str, Any] = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none", "scrollPastEnd": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
NO_KERNEL = ("allowed_kernelspecs=none", "ensure_native_kernel=False")
SCRIPT, STYLE = (Path(__file__).with_suffix(suffix).read_text() for suffix in (".js", ".css"))
Facts = Mapping[str, Any]
Look = tuple[list[str], list[str]]  # problems; names of pictures


def frames(png: bytes) -> int:
    """Count the frames of a PNG: 1 without a chunk acTL, which an animation has."""
    position = png.find(b"acTL", 0, png.find(b"IDAT"))
    return 1 if position < 0 else struct.unpack(">I", png[position + 4 : position + 8])[0]


def output_problems(notebook: Mapping[str, Any]) -> list[str]:
    """Name what is wrong with the outputs of a notebook, read from its file.

    Args:
        notebook: content of the file.
    """
    problems: list[str] = []
    for number, cell in enumerate(notebook["cells"]):
        outputs = cell.get("outputs", [])
        if any(output.get("name") == "stderr" for output in outputs):
            problems.append(f"cell {number} wrote to stderr")
        if any(output["output_type"] == "error" for output in outputs):
            problems.append(f"cell {number} ended with an error")
        pngs = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
        moves = any(frames(base64.b64decode("".join(png))) > 1 for png in pngs)
        source = "".join(cell["source"])
        if pngs and not moves and any(f"viz.{name}(" in source for name in ("animate", "play")):
            problems.append(f"the animation of cell {number} has a single frame")
    return problems


def page_problems(facts: Facts, window: int) -> list[str]:
    """Name what is wrong with a page as it is shown.

    Args:
        facts: what `facts` of look.js returns.
        window: width in pixels.
    """
    at = f"in a window of {window} pixels"
    is_narrow = window < WIDTHS[0]  # there code scrolls in its box and large pictures are shrunk
    problems = [
        f"{what} is {has} pixels wide where {at} there are {room}"
        for what, has, room in facts["wide"]
        if not (is_narrow and what.startswith("pre "))
    ]
    problems += [
        f"the picture {name!r} is shrunk to {shown} of {width} pixels {at}"
        for name, shown, width in facts["small"]
        if not is_narrow
    ]
    if facts["overflow"]:
        problems.append(f"the page is {facts['overflow']} pixels too wide {at}")
    problems += [f"a formula is an error: {text}" for text in facts["errors"]]
    problems += [f"a formula is not set: {text}" for text in facts["raw"]]
    problems += [f"a picture does not load: {name}" for name in facts["unloaded"]]
    return problems


def front_page_problems(height: int, lines: int) -> list[str]:
    """Say where the front page is too long.

    Args:
        height: of the page, in pixels.
        lines: of its file.
    """
    screens = height / SCREEN
    tall = [f"{screens:.1f} screens tall; at most {MOST_SCREENS}"] * (screens > MOST_SCREENS)
    return tall + [f"{lines} lines; at most {MOST_LINES}"] * (lines > MOST_LINES)


class Browser:
    """A page of Chromium, driven by its DevTools protocol."""

    def __init__(self, address: str) -> None:
        self.socket: Any = websocket.create_connection(address, PATIENCE, http_no_proxy=["*"])
        self.ids = itertools.count(1)

    def call(self, method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        request = {"id": next(self.ids), "method": method, "params": parameters}
        self.socket.send(json.dumps(request))
        while (answer := json.loads(self.socket.recv())).get("id") != request["id"]:
            pass  # an event
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def evaluate(self, expression: str) -> Any:
        asked = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", asked)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression[:80]}...: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", size)

    def open(self, path: Path, factory: str) -> None:
        arguments = json.dumps([str(path.relative_to(ROOT)), factory])
        # A promise that no name holds may be collected before it is kept.
        self.evaluate(f"window.opening = openFile(...{arguments})")

    def facts(self) -> Facts:
        """Look until four looks in a row are the same: formulas and pictures come late."""
        looks: list[Facts] = []
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            looks = [*looks[-3:], self.evaluate("facts()")]
            if len(looks) == 4 and all(look == looks[0] for look in looks):
                return looks[-1]
            time.sleep(0.4)
        raise TimeoutError(f"the page still changed after {PATIENCE} seconds: {looks[-1]}")

    def take_pictures(self, stem: Path) -> list[str]:
        """Write all of the page, from top to bottom, to STEM-1.png, STEM-2.png and so on."""
        for old in stem.parent.glob(f"{stem.name}-[0-9]*.png"):
            old.unlink()
        self.resize(WIDTHS[0], PICTURE)
        self.facts()
        height, step = self.evaluate("[scroller.scrollHeight, scroller.clientHeight]")
        names: list[str] = []
        for number in range(-(-height // step)):
            self.evaluate(f"scroller.scrollTop = {number * step}")
            time.sleep(0.3)
            data = self.call("Page.captureScreenshot", {})["data"]
            names.append(f"{stem.name}-{number + 1}.png")
            stem.with_name(names[-1]).write_bytes(base64.b64decode(data))
        return names


def find_chromium() -> str:
    """Find the browser, or exit and say how to get it."""
    for name in CHROMIUM:
        if path := shutil.which(name):
            return path
    sys.exit(f"no browser: none of {', '.join(CHROMIUM)} is on the PATH; apt install chromium")


def fetch(address: str) -> Any:
    """Read JSON from this machine, past any proxy, as soon as it is there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(4 * PATIENCE):
        with suppress(OSError):
            return json.load(opener.open(address))
        time.sleep(0.25)
    raise TimeoutError(f"{address} did not answer within {PATIENCE} seconds")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def jupyterlab() -> Generator[Browser]:
    """Start JupyterLab with no settings but ours, and a browser that shows it."""
    chromium, lab_port, port = find_chromium(), free_port(), free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        (Path(folder) / "overrides.json").write_text(json.dumps(SETTINGS))
        lab = ["lab", "--no-browser", "--allow-root", f"--port={lab_port}"]
        lab += [f"--ServerApp.root_dir={ROOT}", "--IdentityProvider.token="]
        lab += [f"--LabApp.{name}_dir={folder}" for name in ("app_settings", "user_settings")]
        lab += [f"--KernelSpecManager.{name}" for name in NO_KERNEL]
        lab += [f"--LabApp.workspaces_dir={folder}/workspaces", "--expose-app-in-browser"]
        lab += [f"--FileCheckpoints.checkpoint_dir={folder}/checkpoints"]
        browser = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server"]
        browser += ["--disable-dev-shm-usage", f"--remote-debugging-port={port}"]
        browser += ["--remote-allow-origins=*", f"--user-data-dir={folder}/browser", "about:blank"]
        null = subprocess.DEVNULL
        commands = ([sys.executable, "-m", "jupyter", *lab], browser)
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for command in commands:
                processes.append(subprocess.Popen(command, stdout=null, stderr=null))
            fetch(f"http://127.0.0.1:{lab_port}/api")
            tabs = fetch(f"http://127.0.0.1:{port}/json")
            page = Browser(next(t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page"))
            page.resize(WIDTHS[0], SCREEN)
            page.call("Page.navigate", {"url": f"http://127.0.0.1:{lab_port}/lab"})
            for _ in range(4 * PATIENCE):
                if page.evaluate("window.jupyterapp?.started.then(() => true) ?? false"):
                    break
                time.sleep(0.25)
            else:
                raise TimeoutError(f"JupyterLab did not start within {PATIENCE} seconds")
            page.evaluate(SCRIPT)
            yield page
        finally:
            for process in processes:
                process.terminate()
                process.wait()


def look_at_notebook(browser: Browser, path: Path, stem: Path) -> Look:
    problems = output_problems(json.loads(path.read_text()))
    pictures: list[str] = []
    browser.open(path, "Notebook")
    for width in WIDTHS:
        browser.resize(width, SCREEN)
        problems += page_problems(browser.facts(), width)
    for theme in ("Light", "Dark"):
        change = json.dumps({"theme": f"JupyterLab {theme}"})
        browser.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {change})")
        pictures += browser.take_pictures(stem.with_name(f"{stem.name}-{theme.lower()}"))
    return problems, pictures


def column(path: Path, window: int) -> int:
    """Return the width of a README on GitHub: beside the front page stands a column of facts."""
    return min(window, 1280) - 64 - 320 - 66 if path.parent == ROOT else 830


def look_at_readme(browser: Browser, path: Path, stem: Path) -> Look:
    problems: list[str] = []
    facts: dict[int, Facts] = {}
    for width in reversed(WIDTHS):
        browser.resize(width, SCREEN)
        browser.open(path, "Markdown Preview")
        browser.facts()
        style = f"{STYLE} article {{ width: {column(path, width)}px }}"
        browser.evaluate(f"window.opening = asForge({json.dumps(style)})")
        facts[width] = browser.facts()
        problems += page_problems(facts[width], width)
    if path.parent == ROOT:
        height, lines = facts[WIDTHS[0]]["height"], len(path.read_text().splitlines())
        problems += front_page_problems(height, lines)
    return problems, browser.take_pictures(stem)


def main() -> int:
    command = ["git", "ls-files", "*.ipynb", "*README.md"]
    files = subprocess.check_output(command, cwd=ROOT, text=True)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", metavar="PATH", nargs="*", default=files.splitlines())
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "look")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {}
    with jupyterlab() as browser:
        for name in options.paths:
            path = (ROOT / name).resolve()
            look = look_at_notebook if path.suffix == ".ipynb" else look_at_readme
            start = time.monotonic()
            stem = options.out / "-".join(path.relative_to(ROOT).with_suffix("").parts)
            problems, pictures = look(browser, path, stem)
            summary[name] = {"problems": [*dict.fromkeys(problems)], "pictures": pictures}
            print(f"{name}: {time.monotonic() - start:.0f} s")
            for problem in summary[name]["problems"]:
                print(f"  {problem}")
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return int(any(page["problems"] for page in summary.values()))


if __name__ == "__main__":
    sys.exit(main())
