"""The pages in a real browser: no errors, every picture and plot visible, videos play, links lead somewhere, nothing too wide
for a screen, a phone or paper, light or dark as the reader likes.

Skipped where there is no Chromium.
"""

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

# Put at the end of a copy of the page, without its Content-Security-Policy, which forbids scripts.
PROBE = """<pre id="probe"></pre><script>
addEventListener("load", async () => {
  const box = e => e.getBoundingClientRect();
  const videos = [...document.querySelectorAll("video")];
  for (const v of videos) v.scrollIntoView();
  await Promise.all(videos.map(v => v.play().catch(e => {})));
  await new Promise(done => setTimeout(done, 1500));
  document.querySelectorAll("details").forEach(d => d.open = true);
  const found = {
    images: [...document.images].map(i => [i.complete && i.naturalWidth > 0, box(i).width > 20]),
    plots: [...document.querySelectorAll("figure svg")].map(s => box(s).width > 100 && box(s).height > 50),
    videos: videos.map(v => [v.error === null, v.videoWidth > 0, v.currentTime > 0, box(v).width > 20]),
    dangling: [...document.querySelectorAll("a[href^='#']")].map(a => a.hash.slice(1))
      .filter(id => !document.getElementById(id)),
    elsewhere: [...document.querySelectorAll("[src]:not([src^='data:']), link, iframe")].length,
    page: document.documentElement.scrollWidth, window: innerWidth,
    colors: [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
      getComputedStyle(document.querySelector("figure svg text")).fill],
  };
  // No window is as narrow as a phone, and none has paper's rules: the body gets the width, and the page the rules.
  document.body.style.width = "375px";
  found.phone = document.body.scrollWidth;
  for (const sheet of document.styleSheets) for (const media of [...sheet.cssRules])
    if (media.media?.mediaText === "print")
      for (const rule of media.cssRules) sheet.insertRule(rule.cssText, sheet.cssRules.length);
  document.body.style.width = "696px";
  found.cut = [...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1)
    .map(e => e.textContent.trim().slice(0, 40));
  document.getElementById("probe").textContent = JSON.stringify(found);
});
</script></body>"""


def look(page, tmp_path, *, width=1000, dark=False):
    """What the browser makes of a page: what the probe found, and its console."""
    text = page.read_text(encoding="utf-8")
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert without_policy != text
    (tmp_path / "page.html").write_text(without_policy.replace("</body>", PROBE), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--autoplay-policy=no-user-gesture-required", "--enable-logging=stderr", f"--window-size={width},900"]
    command += ["--virtual-time-budget=20000", "--dump-dom", *(["--blink-settings=preferredColorScheme=0"] if dark else [])]
    ended = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    (found,) = re.findall(r'<pre id="probe">(.*?)</pre>', ended.stdout, re.DOTALL)
    return json.loads(html.unescape(found)), [line for line in ended.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def report(finished):
    (path,) = finished.glob("artifacts/evaluate/*/report.html")
    return path


# The page's background, its text, a plot's text.
LIGHT = ["rgb(253, 252, 250)", "rgb(31, 30, 28)", "rgb(74, 72, 67)"]
DARK = ["rgb(23, 23, 26)", "rgb(230, 227, 221)", "rgb(185, 181, 173)"]


@pytest.mark.parametrize(("width", "dark"), [(1000, False), (500, True)])
def test_the_report(report, tmp_path, width, dark):
    """As wide as a screen, and as narrow as the browser's window gets."""
    found, console = look(report, tmp_path, width=width, dark=dark)
    assert console == []
    assert found["images"], "pictures of slots"
    assert all(all(facts) for facts in found["images"])
    assert len(found["plots"]) > 5
    assert all(found["plots"])
    assert found["videos"]
    assert all(all(facts) for facts in found["videos"])
    assert (found["dangling"], found["elsewhere"]) == ([], 0)
    assert found["page"] <= found["window"], "wide tables scroll by themselves"
    assert found["colors"] == (DARK if dark else LIGHT)
    assert found["phone"] == 375
    assert found["cut"] == [], "paper does not scroll"


def test_the_policy_of_the_page_itself(report, tmp_path):
    """As it is, with its policy: nothing that it shows is refused."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", report.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert [line for line in ended.stderr.splitlines() if "CONSOLE" in line] == []


def test_a_fault_would_be_seen(report, tmp_path):
    """The probe itself: a broken picture, an unknown anchor, an error of a script and what is too wide are found."""
    broken = tmp_path / "broken.html"
    faults = '<img src="data:image/png;base64,AAAA" width="50"><a href="#nowhere">x</a><script>missing()</script>'
    faults += '<p style="min-width: 600px">broad</p><div class="scroll"><p style="min-width: 900px">wide</p></div>'
    broken.write_text(report.read_text(encoding="utf-8").replace("</main>", f"{faults}</main>"), encoding="utf-8")
    (tmp_path / "in").mkdir()
    found, console = look(broken, tmp_path / "in")
    assert found["images"][-1] == [False, True]
    assert found["dangling"] == ["nowhere"]
    assert (found["phone"] > 375, found["cut"]) == (True, ["wide"])
    assert any("missing is not defined" in line for line in console)


def test_runs_side_by_side(physion, finished, tmp_path):
    page = tmp_path / "side.html"
    ended = physion("compare", f"{finished}@", f"{finished}@", "--report", page)
    assert ended.code == 0, ended.err
    (tmp_path / "in").mkdir()
    found, console = look(page, tmp_path / "in")
    assert (console, found["dangling"], found["elsewhere"]) == ([], [], 0)
    assert len(found["plots"]) == 3
    assert all(found["plots"])
    assert found["page"] <= found["window"]
    assert (found["phone"], found["cut"]) == (375, [])
